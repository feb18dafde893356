"""Two rounds of self-training by the real commands, killed in every kind of step, and undisturbed."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from nnunet_semi.narrow import narrow
from short_training import differences, read_checkpoint
from small_dataset import environment, make_dataset, plan
from test_training import assert_same_label_maps, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # an idle core needs five minutes for all of it

BASE = "Dataset001_Tiny"
TRAINERS = [f"nnUNetTrainerKeepCheckpoints_{epochs}epochs_2iters_seed0" for epochs in (3, 2, 2)]
DATASETS = [BASE, "Dataset002_Tiny_2d_w4_fold0_round1", "Dataset003_Tiny_2d_w4_fold0_round2"]
DATA = "nnUNetPlans_2d"
LIMIT = 3000  # seconds for one command


def selftraining(root: Path, *options: str) -> list[str]:
    trainer = TRAINERS[0].replace("_3epochs", "")
    words = ["selftrain", "-d", "1", "-c", "2d_w4", "-f", "0", "--rounds", "2", "-tr", trainer]
    rules = ["--epochs", "3,2", "--first", "top:.5", "--later", "top:.75"]
    return [*words, *rules, "-device", "cpu", "-o", str(root / "run"), *options]


def call(env: Mapping[str, str], name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [command(name), *arguments]
    return subprocess.run(line, env=dict(env), capture_output=True, text=True, timeout=LIMIT)


def run(env: Mapping[str, str], name: str, *arguments: str) -> str:
    """What a command that works prints."""
    done = call(env, name, *arguments)
    assert done.returncode == 0, f"{name} {arguments}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def fold_folder(root: Path, number: int) -> Path:
    return root / "nnUNet_results" / DATASETS[number] / f"{TRAINERS[number]}__nnUNetPlans__2d_w4" / "fold_0"


def environment_of(root: Path) -> dict[str, str]:
    few = {"nnUNet_n_proc_DA": "0", "nnUNet_npp": "0", "nnUNet_nps": "0"}
    return {**os.environ, **environment(root), **few}


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of which nothing but the labeled cases is preprocessed."""
    root = tmp_path_factory.mktemp("selftraining") / "planned"
    with mock.patch.dict(os.environ, environment(root)):
        make_dataset(root)
        plan(1, ("2d",))
        narrow(1, "2d", width=4)
    (root / "nnUNet_results").mkdir()
    return root


def copied(planned: Path, name: str) -> Path:
    return Path(shutil.copytree(planned, planned.with_name(name)))


@pytest.fixture(scope="module")
def unbroken(planned: Path) -> SimpleNamespace:
    root = copied(planned, "unbroken")
    said = run(environment_of(root), "nnunet_semi", *selftraining(root))
    return SimpleNamespace(root=root, said=said)


# --- killed in every kind of step ---


def appeared(pattern: str) -> Callable[[Path], bool]:
    return lambda root: any(root.glob(pattern))


def in_epoch(number: int, epoch: int) -> Callable[[Path], bool]:
    """A checkpoint is there, and a later epoch has begun."""

    def look(root: Path) -> bool:
        folder = fold_folder(root, number)
        logs = "".join(log.read_text() for log in folder.glob("training_log_*.txt"))
        return (folder / "checkpoint_best.pth").is_file() and f"Epoch {epoch}" in logs

    return look


def at_once(root: Path) -> bool:
    return True


ROUND = f"nnUNet_preprocessed/{DATASETS[1]}"
KILLS: dict[str, Callable[[Path], bool]] = {
    "round_0/preprocess": appeared(f"nnUNet_preprocessed/{BASE}/.{DATA}_unlabeled_tmp_*"),
    "round_0/train": in_epoch(0, 1),
    "round_1/score": appeared("run/round_1/scores/part_*.jsonl"),
    "round_1/branch": at_once,
    "round_1/select": at_once,
    "round_1/images": at_once,
    "round_1/predict": appeared(f"nnUNet_raw/{DATASETS[1]}/labelsPs/*.png"),
    "round_1/cases": appeared(f"{ROUND}/.{DATA}_pseudo_*"),
    "round_1/train": lambda root: (fold_folder(root, 1) / "checkpoint_final.pth").is_file(),  # in its validation
}


def kill_in(root: Path, env: Mapping[str, str], step: str, ready: Callable[[Path], bool]) -> None:
    """Starts the self-training, and kills the process alone as soon as it is at this step."""
    said = root / "said.txt"
    with said.open("w") as output:
        line = [command("nnunet_semi"), *selftraining(root)]
        process = subprocess.Popen(line, env=dict(env), stdout=output, stderr=output)
    begins = re.compile(rf"\[{position(step)}/16\] \$ ")
    deadline = time.monotonic() + LIMIT
    while not (begins.search(said.read_text()) and ready(root)):
        assert process.poll() is None, f"it ended before {step}: {said.read_text()[-3000:]}"
        assert time.monotonic() < deadline, f"{step} did not begin: {said.read_text()[-3000:]}"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert step not in json.loads((root / "run" / "selftrain.json").read_text())["done"], f"killed after {step}"


def position(step: str) -> int:
    """The number of a step in the plan, from 1."""
    kinds = ["score", "branch", "select", "images", "predict", "cases", "train"]
    number, kind = step.removeprefix("round_").split("/")
    return {"preprocess": 1, "train": 2}[kind] if number == "0" else 3 + 7 * (int(number) - 1) + kinds.index(kind)


@pytest.fixture(scope="module")
def killed(planned: Path) -> SimpleNamespace:
    root = copied(planned, "killed")
    env = environment_of(root)
    for step, ready in KILLS.items():
        kill_in(root, env, step, ready)
    return SimpleNamespace(root=root, said=run(env, "nnunet_semi", *selftraining(root)))


def test_a_self_training_killed_in_every_kind_of_step_ends_as_the_unbroken_one(
    unbroken: SimpleNamespace, killed: SimpleNamespace
) -> None:
    for number in range(3):
        folders = [fold_folder(each.root, number) for each in (unbroken, killed)]
        assert differences(*(read_checkpoint(folder / "checkpoint_final.pth") for folder in folders)) == []
        assert_same_files(*(folder / "validation" for folder in folders), pattern="*.png")
    for number in (1, 2):
        rounds = [each.root / "run" / f"round_{number}" for each in (unbroken, killed)]
        assert (rounds[0] / "scores.csv").read_bytes() == (rounds[1] / "scores.csv").read_bytes()
        selections = [json.loads((each / "selection.json").read_text()) for each in rounds]
        assert selections[0]["selected"] == selections[1]["selected"]
        for folder in ("imagesPs", "labelsPs"):
            assert_same_files(*(each.root / "nnUNet_raw" / DATASETS[number] / folder for each in (unbroken, killed)))
    assert summary(unbroken.root) == summary(killed.root)


def assert_same_files(first: Path, second: Path, pattern: str = "*.png") -> None:
    names = sorted(path.name for path in first.glob(pattern))
    assert names and names == sorted(path.name for path in second.glob(pattern))
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def summary(root: Path) -> list[dict[str, Any]]:
    """The table without what depends on the place and the clock."""
    with open(root / "run" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name not in ("validation", "minutes")} for row in rows]


def test_every_step_that_was_done_is_not_done_again(killed: SimpleNamespace) -> None:
    """The steps of the last run, which began in the validation of the first round."""
    done = [int(number) for number in re.findall(r"\[(\d+)/16\] (?:done before|found done)", killed.said)]
    begun = [int(number) for number in re.findall(r"\[(\d+)/16\] \$", killed.said)]
    assert done == list(range(1, 9)) and begun == list(range(9, 17))
    (validation,) = re.findall(r"\[9/16\] \$ (.*)", killed.said)
    assert validation.startswith("nnUNetv2_train 2 ") and validation.endswith(" --val")


# --- what it leaves ---


def test_each_round_keeps_its_table_selection_and_validation(unbroken: SimpleNamespace) -> None:
    folder = unbroken.root / "run"
    for number in range(3):
        validation = json.loads((folder / f"round_{number}" / "validation.json").read_text())
        validated = {Path(case["prediction_file"]).stem for case in validation["metric_per_case"]}
        assert validated == {"tr_003", "tr_005"}  # of fold 0 of the original
    counts = [(int(row["labeled"]), int(row["pseudo_labeled"])) for row in summary(unbroken.root)]
    assert counts == [(4, 0), (4, 2), (4, 3)]
    assert (folder / "dice_per_round.png").is_file()
    assert f"picture: {folder / 'dice_per_round.png'}" in unbroken.said


def test_the_original_has_no_more_than_before(unbroken: SimpleNamespace, planned: Path) -> None:
    for kind in ("nnUNet_raw", "nnUNet_preprocessed"):
        before = {
            path.relative_to(planned): path.read_bytes() for path in (planned / kind).rglob("*") if path.is_file()
        }
        after = {name: (unbroken.root / name).read_bytes() for name in before}
        assert after == before
    added = {path.name for path in (unbroken.root / "nnUNet_preprocessed" / BASE).iterdir()} - {
        path.name for path in (planned / "nnUNet_preprocessed" / BASE).iterdir()
    }
    assert added == {f"{DATA}_unlabeled", f"{DATA}_unlabeled.jsonl", f"{DATA}_unlabeled.lock", "splits_final.json"}


def test_the_command_at_the_end_predicts(unbroken: SimpleNamespace, killed: SimpleNamespace) -> None:
    outputs = []
    for each in (unbroken, killed):
        (line,) = re.findall(r"predict with the best model: (.*)", each.said)
        images, output = each.root / "nnUNet_raw" / BASE / "imagesTs", each.root / "predicted"
        words = shlex.split(line.replace("INPUT_FOLDER", str(images)).replace("OUTPUT_FOLDER", str(output)))
        run(environment_of(each.root), *words)
        outputs.append(output)
    assert_same_label_maps(*outputs)


def test_the_same_command_again_does_nothing_and_another_is_refused(unbroken: SimpleNamespace) -> None:
    env = environment_of(unbroken.root)
    again = run(env, "nnunet_semi", *selftraining(unbroken.root))
    assert len(re.findall(r"\[\d+/16\] done before", again)) == 16 and "] $ " not in again
    assert again.splitlines()[-6:] == unbroken.said.splitlines()[-6:]
    refused = call(env, "nnunet_semi", *selftraining(unbroken.root, "--stop-early"))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "with stop_early False, but True was asked for" in line
