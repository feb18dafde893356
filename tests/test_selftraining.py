"""Self-training: settings, the plan and its commands, the folder, results, and the guard of child processes."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnunet_semi.cli import build_parser, main
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.narrow import narrow
from nnunet_semi.selftraining.branch import branch, reserve
from nnunet_semi.selftraining.folder import STATE, RunFolder
from nnunet_semi.selftraining.plan import BEING_WRITTEN, all_steps, continue_training, remove_half_written
from nnunet_semi.selftraining.results import (
    RoundResult,
    best_round,
    improved,
    is_validated,
    table,
    validation_dice,
    write_results,
)
from nnunet_semi.selftraining.run import selftrain
from nnunet_semi.selftraining.settings import Settings, parse_rules, select_options, trainer_names
from small_dataset import environment

BASE = "Dataset001_Tiny"
SETTINGS = Settings(
    dataset=BASE,
    configuration="2d",
    plans="nnUNetPlans",
    fold=0,
    rounds=2,
    trainers=["T_3epochs", "T_2epochs", "T_2epochs"],
    first=["top:.5"],
    later=["threshold:.9", "complete"],
    by="checkpoints",
    checkpoint="checkpoint_final.pth",
    warm_start=False,
    stop_early=False,
    skip_bad=False,
)


@pytest.fixture
def own(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Gives the root of a copy of a tiny dataset that a test may change."""

    def make(**settings: Any) -> Path:
        shutil.copytree(tiny(**settings).parents[2], tmp_path / "own")
        for name, value in environment(tmp_path / "own").items():
            monkeypatch.setenv(name, value)
        (tmp_path / "own" / "nnUNet_results").mkdir(exist_ok=True)
        return tmp_path / "own"

    return make


# --- settings ---


@pytest.mark.parametrize(
    "trainer, epochs, rounds, expected",
    [
        ("T", None, 2, ["T_1000epochs", "T_100epochs", "T_100epochs"]),
        ("T", (3, 2), 3, ["T_3epochs", "T_2epochs", "T_2epochs", "T_2epochs"]),
        ("T", (5,), 1, ["T_5epochs", "T_5epochs"]),
        ("T", (5, 4, 3), 2, ["T_5epochs", "T_4epochs", "T_3epochs"]),
        ("T_2iters_seed0", (3, 2), 1, ["T_3epochs_2iters_seed0", "T_2epochs_2iters_seed0"]),
        ("T_7epochs_seed0", None, 1, ["T_7epochs_seed0"] * 2),
    ],
)
def test_every_round_has_a_trainer_whose_name_says_its_length(
    trainer: str, epochs: Any, rounds: int, expected: list[str]
) -> None:
    assert trainer_names(trainer, epochs, rounds) == expected


@pytest.mark.parametrize("trainer, epochs", [("T_7epochs", (3,)), ("T", (0,)), ("T", (1, 2, 3)), ("T", ())])
def test_lengths_that_cannot_be_are_refused(trainer: str, epochs: tuple[int, ...]) -> None:
    with pytest.raises(WrongUse, match="--epochs"):
        trainer_names(trainer, epochs, 1)


def test_rules_become_options_of_select() -> None:
    rules = parse_rules("threshold:.9, complete,max:1000")
    assert select_options(rules) == ["--threshold", ".9", "--complete", "--max", "1000"]


@pytest.mark.parametrize("text", ["", "top", "top:", "top:x", "complete:1", "bottom:.5", "top:.5,", "top:1,top:1"])
def test_rules_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(WrongUse, match="got "):
        parse_rules(text)


@pytest.mark.parametrize("text", ["top:50", "top:0", "threshold:1", "max:.5", "max:0", "complete,components:0"])
def test_values_that_select_would_refuse_after_the_training_are_refused_before_it(text: str) -> None:
    with pytest.raises(WrongUse, match="expected"):
        parse_rules(text)


def test_a_score_above_zero_can_be_asked_for() -> None:
    assert parse_rules("threshold:0") == ["threshold:0"]


# --- the plan ---


def plan_of(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """What --dry-run prints."""
    capsys.readouterr()
    assert main(["selftrain", "-d", "1", "-c", "2d", "-device", "cpu", "--dry-run", *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_prints_the_commands_and_writes_nothing(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    before = sorted(path for path in root.rglob("*"))
    options = ["--rounds", "2", "-tr", "T_2iters_seed0", "--epochs", "3,2", "--later", "threshold:.9,complete"]
    found = plan_of(root, capsys, *options, "-o", str(root / "run"))
    tables = [f"{root}/run/round_{n}/scores.csv" for n in (1, 2)]
    one, two = (f"{root}/nnUNet_raw/Dataset00{n + 1}_Tiny_2d_fold0_round{n}" for n in (1, 2))
    assert found == [
        f"self-training in {root}/run: 2 round(s) after a supervised training",
        "# round 0: Dataset001_Tiny",
        "nnUNetv2_train 1 2d 0 -tr T_3epochs_2iters_seed0 -device cpu",
        "nnunet_semi preprocess -d 1 -c 2d",
        "# round 1: Dataset002_Tiny_2d_fold0_round1",
        f"nnunet_semi score -d 1 -c 2d -f 0 -tr T_3epochs_2iters_seed0 --by checkpoints -o {tables[0]} -device cpu",
        "nnunet_semi branch -d 1 --id 2 --name Tiny_2d_fold0_round1",
        f"nnunet_semi select -d 2 --table {tables[0]} --top .5",
        "nnunet_semi pseudo_images -d 2",
        f"nnUNetv2_predict -i {one}/imagesPs -o {one}/labelsPs -d 1 -c 2d -f 0 -tr T_3epochs_2iters_seed0 -device cpu",
        "nnunet_semi pseudo_cases -d 2 -c 2d",
        "nnUNetv2_train 2 2d 0 -tr T_2epochs_2iters_seed0 -device cpu",
        "# round 2: Dataset003_Tiny_2d_fold0_round2",
        f"nnunet_semi score -d 2 -c 2d -f 0 -tr T_2epochs_2iters_seed0 --by checkpoints -o {tables[1]} -device cpu",
        "nnunet_semi branch -d 1 --id 3 --name Tiny_2d_fold0_round2",
        f"nnunet_semi select -d 3 --table {tables[1]} --threshold .9 --complete",
        "nnunet_semi pseudo_images -d 3",
        f"nnUNetv2_predict -i {two}/imagesPs -o {two}/labelsPs -d 2 -c 2d -f 0 -tr T_2epochs_2iters_seed0 -device cpu",
        "nnunet_semi pseudo_cases -d 3 -c 2d",
        "nnUNetv2_train 3 2d 0 -tr T_2epochs_2iters_seed0 -device cpu",
    ]
    assert sorted(path for path in root.rglob("*")) == before


def test_every_verb_of_the_plan_can_be_typed(own: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = own()
    options = ["--later", "threshold:.9,complete,max:1000,components:2", "--skip-bad", "-chk", "checkpoint_best.pth"]
    lines = plan_of(root, capsys, *options, "--by", "mirrors")
    verbs = [shlex.split(line)[1:] for line in lines if line.startswith("nnunet_semi ")]
    assert len(verbs) == 1 + 5 * 4
    for words in verbs:
        build_parser().parse_args(words)  # exits where it cannot be
    assert [line for line in lines if "-chk checkpoint_best.pth" in line] == [
        line for line in lines if line.startswith("nnUNetv2_predict")
    ]


def test_a_branch_has_a_fold_for_what_fold_all_is_in_the_original(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = plan_of(own(labeled=2), capsys, "-f", "all", "--rounds", "1")
    trainings = [shlex.split(line)[1:4] for line in lines if line.startswith("nnUNetv2_train")]
    assert trainings == [["1", "2d", "all"], ["2", "2d", "0"]]
    assert any(" -d 1 -c 2d -f all " in line for line in lines if line.startswith("nnUNetv2_predict"))


def test_a_warm_start_takes_the_weights_of_the_round_before_unless_it_goes_on(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    lines = plan_of(root, capsys, "--warm-start", "--rounds", "2")
    weights = [line.partition(" -pretrained_weights ")[2] for line in lines if line.startswith("nnUNetv2_train")]
    model = "{}/fold_0/checkpoint_final.pth".format("nnUNetTrainerKeepCheckpoints_{}epochs__nnUNetPlans__2d")
    results = root / "nnUNet_results"
    assert weights[0] == ""
    assert weights[1] == str(results / BASE / model.format(1000))
    assert weights[2] == str(results / "Dataset002_Tiny_2d_fold0_round1" / model.format(100))
    run = begun(root / "run", replace(SETTINGS, warm_start=True))
    step = next(step for step in all_steps(run, "cpu") if step.name == "round_1/train")
    assert "-pretrained_weights" in step.command_now()
    folder = results / "Dataset002_Tiny_2d_fold0_round1" / "T_2epochs__nnUNetPlans__2d" / "fold_0"
    folder.mkdir(parents=True)
    (folder / "checkpoint_best.pth").touch()
    assert step.command_now()[-1] == "--c" and "-pretrained_weights" not in step.command_now()


def test_ids_are_the_first_that_are_free_or_those_asked_for(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    (root / "nnUNet_results" / "Dataset003_Trained").mkdir()
    numbers = [line.split("Dataset")[1][:3] for line in plan_of(root, capsys, "--rounds", "2") if line.startswith("#")]
    assert numbers == ["001", "004", "005"]
    chosen = plan_of(root, capsys, "--rounds", "2", "--id", "700")
    assert [line.split("Dataset")[1][:3] for line in chosen if line.startswith("#")] == ["001", "700", "701"]


def test_other_plans_and_configurations_are_named_in_every_command(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    folder = root / "nnUNet_preprocessed" / BASE
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    (folder / "Mine.json").write_text(json.dumps({**plans, "plans_name": "Mine"}))
    lines = plan_of(root, capsys, "-p", "Mine", "--rounds", "1")
    without = [line for line in lines if not line.startswith(("#", "self")) and " -p Mine" not in line]
    assert [line.split()[1] for line in without] == ["select", "pseudo_images"]


@pytest.mark.parametrize(
    "options, code, said",
    [
        (["--first", "best"], 2, "got the rule 'best'"),
        (["-f", "9"], 2, "got fold 9; expected one of the 5 folds of Dataset001_Tiny, from 0, or all"),
        (["-tr", "T_3epochs", "--epochs", "3"], 2, "leave one of them out"),
        (["--stop-early", "-f", "all"], 2, "-f all, which has no validation cases of its own"),
        (["-c", "3d_fullres"], 2, "has no configuration '3d_fullres'"),
        (["--first", "top:50"], 2, "got --top 50.0; expected a share"),
        (["-tr", "nnUNetTrainer", "--epochs", "5,1"], 2, "nnUNetTrainer_5epochs keeps none of mid-training"),
        (["--by", "networks"], 2, "nnUNetTrainerKeepCheckpoints_1000epochs has one network"),
        (["--by", "mirrors", "-tr", "nnUNetTrainer_nomirror"], 2, "nnUNetTrainer_nomirror_1000epochs does not mirror"),
        (["-tr", "nnUNetTrainerHeatmap"], 2, "which finds landmarks; self-training is for label maps"),
        (["-chk", "best"], 2, "got -chk best; expected a name such as checkpoint_final.pth"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str], options: list[str], code: int, said: str
) -> None:
    own()
    capsys.readouterr()
    assert main(["selftrain", "-d", "1", "-c", "2d", "-device", "cpu", "--dry-run", *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_without_unlabeled_images_nothing_begins(own: Callable[..., Path]) -> None:
    root = own()
    shutil.rmtree(root / "nnUNet_raw" / BASE / "imagesUn")
    with pytest.raises(EnvironmentNotReady, match="put the unlabeled images there"):
        selftrain(1, "2d", device="cpu")
    assert not any((root / "nnUNet_results").iterdir())


def test_ids_of_other_datasets_are_refused_before_anything_is_trained(own: Callable[..., Path]) -> None:
    root = own()
    (root / "nnUNet_raw" / "Dataset008_Other").mkdir()
    with pytest.raises(WrongUse, match="the dataset id 8 belongs to Dataset008_Other; choose another with --id"):
        selftrain(1, "2d", rounds=2, number=7, device="cpu", folder=root / "run")
    assert sorted(path.name for path in (root / "nnUNet_raw").iterdir()) == [BASE, "Dataset008_Other"]


def test_what_another_self_training_left_is_not_taken_for_done(own: Callable[..., Path]) -> None:
    """Its selection, pseudo labels and models would be, under the same id."""
    root = own()
    branch(1, 7, "Tiny_2d_fold0_round1")
    with pytest.raises(WrongUse, match="Dataset007_Tiny_2d_fold0_round1 is of another self-training.* with --id"):
        selftrain(1, "2d", rounds=1, number=7, device="cpu", folder=root / "run", dry_run=True)
    run = RunFolder(root / "run", replace(SETTINGS, rounds=1, trainers=["T_3epochs", "T_2epochs"]), [7], 0)
    (root / "run").mkdir()
    run.write()
    rules = {"first": "top:.5", "later": "threshold:.9,complete"}
    begun_before = {"rounds": 1, "trainer": "T", "epochs": (3, 2), "folder": root / "run", "dry_run": True, **rules}
    assert selftrain(1, "2d", device="cpu", **begun_before) is None  # its own: it goes on


def test_an_id_that_was_reserved_before_a_kill_can_be_taken(own: Callable[..., Path]) -> None:
    root = own()
    reserve(BASE, "Dataset007_Tiny_2d_fold0_round1")
    options: dict[str, Any] = {"rounds": 1, "number": 7, "device": "cpu", "dry_run": True}
    assert selftrain(1, "2d", folder=root / "run", **options) is None


# --- the folder ---


def begun(path: Path, settings: Settings = SETTINGS) -> RunFolder:
    run = RunFolder(path, settings, [2, 3], 0)
    path.mkdir(exist_ok=True)
    run.write()
    return run


def test_steps_that_are_done_stay_done(tmp_path: Path) -> None:
    begun(tmp_path).mark_done("round_0/train", 2.5)
    again = RunFolder.load(tmp_path, SETTINGS, None)
    assert again is not None and again.numbers == [2, 3] and again.fold == 0
    assert again.is_done("round_0/train") and not again.is_done("round_1/train")
    assert again.seconds("round_0/") == 2.5


@pytest.mark.parametrize(
    "change, said",
    [
        ({"rounds": 4}, "with rounds 2, but 4 was asked for"),
        ({"first": ["top:.9"]}, "with first top:.5, but top:.9 was asked for"),
        ({"trainers": ["U"] * 3}, "with trainers T_3epochs,T_2epochs,T_2epochs, but U,U,U was asked for"),
        ({"fold": "all"}, "with fold 0, but all was asked for"),
    ],
)
def test_other_settings_are_refused_in_a_sentence(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    run = begun(tmp_path)
    for step in ("round_1/select", "round_2/select"):
        run.mark_done(step, 1)
    with pytest.raises(WrongUse, match=said) as caught:
        RunFolder.load(tmp_path, replace(SETTINGS, **change), None)
    assert "\n" not in str(caught.value) and "another folder with -o" in str(caught.value)


def test_rules_that_no_case_fulfils_may_be_loosened(tmp_path: Path) -> None:
    looser = replace(SETTINGS, first=["top:.9"], later=["threshold:.1"])
    run = begun(tmp_path)
    changed = RunFolder.load(tmp_path, looser, None)
    assert changed is not None and changed.settings == looser
    run.mark_done("round_1/select", 1)
    run.mark_done("round_2/select", 1)
    assert RunFolder.load(tmp_path, replace(looser, first=SETTINGS.first), None)  # or round 3 would be a dead end
    with pytest.raises(WrongUse, match="with first .* but top:.9 was asked for"):
        RunFolder.load(tmp_path, looser, None)


def test_another_id_is_refused(tmp_path: Path) -> None:
    begun(tmp_path)
    assert RunFolder.load(tmp_path, SETTINGS, 2)
    with pytest.raises(WrongUse, match="the id 2, but --id 5 was asked"):
        RunFolder.load(tmp_path, SETTINGS, 5)


def test_a_broken_state_is_named(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text("{")
    with pytest.raises(UserError, match=STATE):
        RunFolder.load(tmp_path, SETTINGS, None)


def test_a_folder_with_something_else_is_refused_and_left_alone(own: Callable[..., Path]) -> None:
    root = own()
    (root / "run").mkdir()
    (root / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(WrongUse, match="is not empty and holds no self-training"):
        selftrain(1, "2d", device="cpu", folder=root / "run")
    assert [path.name for path in (root / "run").iterdir()] == ["thesis.txt"]


def test_two_at_a_time_in_a_folder_are_refused(own: Callable[..., Path]) -> None:
    from filelock import FileLock

    root = own()
    (root / "run").mkdir()
    with FileLock(str(root / "run" / "selftrain.lock")), pytest.raises(UserError, match="another self-training is at"):
        selftrain(1, "2d", device="cpu", folder=root / "run")


# --- what a kill leaves ---


@pytest.mark.parametrize(
    "files, options",
    [
        ([], []),
        (["checkpoint_036.pth"], []),
        (["checkpoint_best.pth"], ["--c"]),
        (["checkpoint_latest.pth", "checkpoint_best.pth"], ["--c"]),
        (["checkpoint_final.pth", "checkpoint_best.pth"], ["--val"]),
    ],
)
def test_a_training_goes_on_from_what_there_is(tmp_path: Path, files: list[str], options: list[str]) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert continue_training(tmp_path) == options


def test_a_validation_counts_when_its_summary_is_whole(tmp_path: Path) -> None:
    (tmp_path / "validation").mkdir()
    assert not is_validated(tmp_path)
    file = tmp_path / "validation" / "summary.json"
    file.write_text('{"foreground_mean": {"Di')
    assert not is_validated(tmp_path)
    file.write_text('{"foreground_mean": {"Dice": 0.5}, "mean": {}}')
    assert is_validated(tmp_path)


def test_a_class_that_no_validation_case_has_is_left_out_of_the_mean(tmp_path: Path) -> None:
    """nnU-Net's own mean is NaN then."""
    (tmp_path / "validation").mkdir()
    values = {"1": {"Dice": 0.5}, "2": {"Dice": float("nan")}, "(1, 2)": {"Dice": 0.7}}
    content = {"foreground_mean": {"Dice": float("nan")}, "mean": values}
    (tmp_path / "validation" / "summary.json").write_text(json.dumps(content))
    dice, per_class = validation_dice(tmp_path, {"background": 0, "lip": 1, "other": 2, "whole": [1, 2]})
    assert dice == pytest.approx(0.6)
    assert per_class["lip"] == 0.5 and math.isnan(per_class["other"]) and per_class["whole"] == 0.7


def test_predictions_that_may_be_half_written_are_made_again(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("old.png", 500.0), ("recent.png", BEING_WRITTEN - 5), ("last.png", 0.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - age, now - age))
    remove_half_written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    remove_half_written(tmp_path / "not there")


def test_a_step_is_found_done_by_what_lies_on_disk(own: Callable[..., Path]) -> None:
    root = own()
    run = begun(root / "run")
    steps = {step.name: step for step in all_steps(run, "cpu")}
    train = steps["round_0/train"]
    fold = root / "nnUNet_results" / BASE / "T_3epochs__nnUNetPlans__2d" / "fold_0"
    (fold / "validation").mkdir(parents=True)
    (fold / "checkpoint_final.pth").touch()
    assert not train.is_done() and train.continued() == ["--val"]
    (fold / "validation" / "summary.json").write_text('{"foreground_mean": {"Dice": 0.5}, "mean": {}}')
    assert train.is_done()
    assert not steps["round_1/score"].is_done()
    (root / "run" / "round_1").mkdir()
    (root / "run" / "round_1" / "scores.csv").touch()
    assert steps["round_1/score"].is_done()


# --- results ---


def results(*dice: float) -> list[RoundResult]:
    return [
        RoundResult(number, f"Dataset00{number}_A", "T", 4, 2 * number, value, {"disc": value, "square": value / 2})
        for number, value in enumerate(dice)
    ]


def test_the_best_round_is_the_first_with_the_highest_dice() -> None:
    assert best_round(results(0.5, 0.7, 0.7)).number == 1
    assert best_round(results(float("nan"), 0.1)).number == 1
    assert best_round(results(float("nan"), float("nan"))).number == 0


def test_a_round_that_is_only_as_good_did_not_improve() -> None:
    assert improved(results(0.5, 0.6))
    assert not improved(results(0.5, 0.5))
    assert not improved(results(0.5, 0.7, 0.6))


def test_results_are_a_table_and_a_picture(tmp_path: Path) -> None:
    write_results(tmp_path, results(0.5, 0.7, 0.6))
    with open(tmp_path / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["dice"] for row in rows] == ["0.500000", "0.700000", "0.600000"]
    assert [row["pseudo_labeled"] for row in rows] == ["0", "2", "4"]
    assert rows[1]["dice_square"] == "0.350000"
    with Image.open(tmp_path / "dice_per_round.png") as picture:
        assert picture.width > 600 and len(np.unique(np.asarray(picture.convert("L")))) > 10
    found = results(0.5, 0.7, 0.6)
    lines = table(found, best_round(found))
    assert [line.endswith("best") for line in lines] == [False, False, True, False]


# --- the guard ---

CHILD = "import os, time\nopen({path!r} + str(os.getpid()), 'w').close()\ntime.sleep(300)"
PARENT = """
import subprocess, sys
from nnunet_semi.selftraining.guard import guarded
sys.exit(subprocess.call(guarded([sys.executable, "-c", {child!r}])))
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_takes_its_command_and_workers_with_it(tmp_path: Path, number: int) -> None:
    worker = CHILD.format(path=f"{tmp_path}/worker_")
    child = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {worker!r}])\n"
    child += CHILD.format(path=f"{tmp_path}/child_")
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(child=child)])
    names = wait_for(lambda: [path.name for path in tmp_path.iterdir()] if len(list(tmp_path.iterdir())) == 2 else [])
    pids = [int(name.rpartition("_")[2]) for name in names]
    assert all(map(is_alive, pids))
    parent.send_signal(number)
    parent.wait()
    wait_for(lambda: not any(map(is_alive, pids)))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
@pytest.mark.parametrize("code, expected", [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_a_guard_ends_as_its_command_does(code: str, expected: int) -> None:
    from nnunet_semi.selftraining.guard import guarded

    assert subprocess.call(guarded([sys.executable, "-c", code])) == expected


def test_a_narrow_configuration_keeps_its_name_in_the_rounds(
    own: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    narrow(1, "2d", width=4)
    lines = plan_of(root, capsys, "-c", "2d_w4", "--rounds", "1")
    assert "# round 1: Dataset002_Tiny_2d_w4_fold0_round1" in lines
