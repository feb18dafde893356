"""nnU-Net finds the trainers by name, in this process and in spawned ones; start-up costs next to nothing."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import sysconfig
import timeit
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_semi import discovery
from nnunet_semi.discovery import startup, suggestions, variants
from nnunet_semi.discovery.variants import NotAVariant, parse, variant
from nnunet_semi.plugin_trainer import PluginTrainer
from nnunet_semi.registry import TRAINERS

SHIM = str(discovery.hook_folder())
SHOW = f"import os; print(os.environ.get({discovery.VARIABLE!r}))"


def fresh_python(code: str, **environment: str | None) -> str:
    """What a new interpreter prints, with some environment variables set or (None) removed."""
    merged = {**os.environ, **environment}
    env = {name: value for name, value in merged.items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


# --- the start-up line ---


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, SHIM),
        ("", SHIM),
        ("/my/own", f"/my/own{os.pathsep}{SHIM}"),
        (f"{SHIM}{os.pathsep}/my/own", f"{SHIM}{os.pathsep}/my/own"),
    ],
    ids=["unset", "empty", "own folder stays in front", "not twice"],
)
def test_start_up_appends_the_folder(given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fresh_python(SHOW, nnUNet_extTrainer=given).strip() == expected
    monkeypatch.delenv(discovery.VARIABLE)
    if given is not None:
        monkeypatch.setenv(discovery.VARIABLE, given)
    startup.append_folder()  # the way of Python 3.15 gives the same
    assert os.environ[discovery.VARIABLE] == expected


@pytest.mark.parametrize(("switch", "active"), [("1", False), ("yes", False), ("0", True), ("", True)])
def test_start_up_can_be_switched_off(switch: str, active: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said = fresh_python(SHOW, nnUNet_extTrainer=None, NNUNET_SEMI_NO_HOOK=switch).strip()
    assert said == (SHIM if active else "None")
    monkeypatch.delenv(discovery.VARIABLE)
    monkeypatch.setenv("NNUNET_SEMI_NO_HOOK", switch)
    startup.append_folder()
    assert os.environ.get(discovery.VARIABLE) == (SHIM if active else None)


def test_start_up_imports_nothing_of_this_project() -> None:
    code = (
        "import sys; print(sorted(m for m in sys.modules if m.split('.')[0] in ('nnunet_semi', 'nnunetv2', 'torch')))"
    )
    assert fresh_python(code).strip() == "[]"


def test_start_up_line_takes_less_than_a_millisecond_and_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    line = start_up_line()
    monkeypatch.delenv(discovery.VARIABLE)
    compiled = compile(line, "nnunet_semi.pth", "exec")
    assert min(timeit.repeat(lambda: exec(compiled, {"sitedir": "/nowhere"}), number=1, repeat=20)) < 1e-3
    monkeypatch.setattr(os.path, "isdir", None)
    exec(compiled, {})


def start_up_line() -> str:
    """The line as it was installed."""
    (line,) = Path(sysconfig.get_path("purelib"), "nnunet_semi.pth").read_text().splitlines()
    return line


# --- nnU-Net's look-up ---


def test_the_folder_holds_one_module() -> None:
    assert [path.name for path in discovery.hook_folder().glob("*.py")] == ["nnunet_semi_trainers.py"]


@pytest.mark.parametrize("name", TRAINERS)
def test_nnunet_finds_every_registered_trainer(name: str) -> None:
    trainer = recursive_find_trainer_class_by_name(name)
    assert trainer is variants.registered(name)
    assert trainer.__name__ == name
    assert "nnunet_semi_trainers" not in sys.modules  # nnU-Net has thrown the shim out, and it did not matter
    assert pickle.loads(pickle.dumps(trainer)) is trainer
    assert recursive_find_trainer_class_by_name(name) is trainer


def test_typo_names_the_trainer_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer nnUNetTrainerCSP"):
        recursive_find_trainer_class_by_name("nnUNetTrainerCSP")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "nnunet_semi: it knows no trainer nnUNetTrainerCSP; did you mean nnUNetTrainerCPS?" or (
        line.startswith("nnunet_semi: it knows no trainer nnUNetTrainerCSP; did you mean nnUNetTrainerCPS or ")
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nnUNetTrainerCSP_10epochs", "knows no trainer nnUNetTrainerCSP; did you mean nnUNetTrainerCPS"),
        ("nnUNetTrainerDA6", "nnUNetTrainerDA5"),
        ("nnUNetTrainerCPS_20miters", "did you mean nnUNetTrainerCPS"),
        ("nnUNetTrainerCPS_20miters", "? Endings are _Nepochs, _Miters, _seedK, _nomirror."),
        ("Zebra", "`nnunet_semi list` shows the names"),
        ("nnUNetTrainerCPS_0epochs", "asks for 0 epochs; give _Nepochs a number of 1 or more"),
        ("nnUNetTrainerCPS_2iters_0iters", "asks for 0 iterations; give _Miters"),
        ("nnUNetTrainerCPS_1seed_seed2_seed3", "carries _seedK twice; give it once"),
        ("nnUNetTrainerCPS_nomirror_nomirror", "carries _nomirror twice; give it once"),
    ],
)
def test_unknown_names_are_explained_in_one_line(name: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AttributeError, match=name):
        discovery.find_trainer(name)
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_questions_of_the_import_system_stay_unanswered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AttributeError):
        discovery.find_trainer("__path__")
    assert capsys.readouterr().err == ""


def test_errors_inside_a_trainer_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRAINERS, "nnUNetTrainerBroken", ("nnunet_semi.trainers.not_there", ""))
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        recursive_find_trainer_class_by_name("nnUNetTrainerBroken")


def test_names_on_disk_include_nnunets_own_trainers() -> None:
    assert {"nnUNetTrainer", "nnUNetTrainerDA5", "nnUNetTrainer_10epochs"} <= set(suggestions.nnunet_trainer_names())


# --- names with endings ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("T_100epochs", ("T", {"epochs": 100})),
        ("T_1epoch_1iter", ("T", {"epochs": 1, "iterations": 1})),
        ("T_seed0_7iters_20epochs", ("T", {"epochs": 20, "iterations": 7, "seed": 0})),
        ("T_nomirror_9iters", ("T", {"iterations": 9, "mirroring": 0})),
        ("T_a_5epochs_b_2iters", ("T_a_5epochs_b", {"iterations": 2})),
    ],
)
def test_endings_are_read_in_any_order(name: str, expected: tuple[str, dict[str, int]]) -> None:
    assert parse(name)[0] == expected


@pytest.mark.parametrize(
    "name", ["T", "T_epochs", "T_-1epochs", "T_1.5epochs", "T_100epochsX", "T100epochs", "_5epoch s"]
)
def test_other_names_are_no_variants(name: str) -> None:
    with pytest.raises(NotAVariant):
        parse(name)


@pytest.mark.parametrize(("iterations", "validation"), [(1, 1), (2, 1), (5, 1), (50, 10), (250, 50)])
def test_validation_iterations_scale_along(iterations: int, validation: int) -> None:
    trainer = variant(f"nnUNetTrainer_{iterations}iters")
    assert (trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (iterations, validation)
    assert not hasattr(trainer, "num_epochs")


@pytest.mark.parametrize(
    ("base", "bases"),
    [
        ("nnUNetTrainerCPS", ["nnUNetTrainerCPS"]),
        ("nnUNetTrainer", ["PluginTrainer"]),
        ("nnUNetTrainerDA5", ["PluginTrainer", "nnUNetTrainerDA5"]),
        ("nnUNetTrainerBenchmark_5epochs", ["PluginTrainer", "nnUNetTrainerBenchmark_5epochs"]),
    ],
)
def test_nnunet_finds_variants_of_every_kind_of_base(base: str, bases: list[str]) -> None:
    name = f"{base}_seed3"
    trainer = recursive_find_trainer_class_by_name(name)
    assert trainer.__name__ == trainer.__qualname__ == name
    assert [parent.__name__ for parent in trainer.__bases__] == bases
    assert issubclass(trainer, PluginTrainer) and trainer.seed == 3
    assert recursive_find_trainer_class_by_name(name) is trainer
    assert list(inspect.signature(trainer.__init__).parameters)[1:] == [
        "plans",
        "configuration",
        "fold",
        "dataset_json",
        "device",
    ]


def test_nnunets_own_class_wins_where_it_has_the_name() -> None:
    assert recursive_find_trainer_class_by_name("nnUNetTrainer_10epochs").__module__.startswith("nnunetv2.")


def test_trainers_of_the_user_have_variants_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class nnUNetTrainerMine(nnUNetTrainer):\n    pass\n"
    )
    monkeypatch.setenv(discovery.VARIABLE, f"{tmp_path}{os.pathsep}{SHIM}")
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainerMine_4epochs")
    assert [parent.__name__ for parent in trainer.__bases__] == ["PluginTrainer", "nnUNetTrainerMine"]
    assert trainer.num_epochs == 4
    assert pickle.loads(pickle.dumps(trainer)) is trainer


def describe(trainer: type[nnUNetTrainer]) -> tuple[str, int, int]:
    """Runs in another process, which gets the class by pickle."""
    return trainer.__name__, trainer.num_epochs, os.getpid()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_classes_reach_other_processes(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} is not offered here")
    trainer = variant("nnUNetTrainerCPS_6epochs")
    with multiprocessing.get_context(method).Pool(1) as pool:
        name, epochs, process = pool.apply(describe, (trainer,))
    assert (name, epochs) == ("nnUNetTrainerCPS_6epochs", 6)
    assert process != os.getpid()


def test_the_module_of_variants_knows_no_other_names() -> None:
    assert not hasattr(variants, "nothing_of_this_name")


@pytest.mark.parametrize("name", [*TRAINERS, *suggestions.nnunet_trainer_names()])
def test_every_trainer_can_be_shortened_by_name(name: str, tiny_2d: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # two benchmarks insist on it
    own_length = re.search(r"_(\d+)epochs?", name)  # nnUNetTrainer_5epochs keeps its 5
    full_name = f"{name}_15iters_seed5" if own_length else f"{name}_7epochs_15iters_seed5"
    plans, dataset = json.loads(tiny_2d.read_text()), json.loads((tiny_2d.parent / "dataset.json").read_text())
    trainer_class = recursive_find_trainer_class_by_name(full_name)
    trainer = trainer_class({**plans, "continue_training": False}, "2d", 0, dataset, torch.device("cpu"))
    told = (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch, trainer.seed)
    assert told == (int(own_length.group(1)) if own_length else 7, 15, 3, 5)
    assert Path(trainer.output_folder).parent.name == f"{full_name}__nnUNetPlans__2d"
