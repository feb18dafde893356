"""The benchmark scripts: who is trained on and who is tested, what is written down, and how it is summed up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from small_dataset import draw_case, write_image

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT / "benchmarks"))

import protocol as script  # noqa: E402
from cases import ALL, TASKS, TESTS, dataset_name, read_protocol, split_cases  # noqa: E402
from children import environment, run_child  # noqa: E402
from nnunet_semi.errors import UserError, WrongUse  # noqa: E402
from prepare import Preparation  # noqa: E402
from results import append_row, gap_share, is_done, markdown, mean_and_deviation, read_rows  # noqa: E402
from runs import dice  # noqa: E402
from step import in_turns  # noqa: E402

CASES = [f"p{number}_frame{frame}" for number in range(12) for frame in (1, 2)]
PATIENTS = {
    "labels": {"background": 0, "heart": 1},
    "modality": "MRI",
    "labeled_7_patients": ["p3", "p0"],
    "train": CASES[:20],
    "development_test": CASES[20:],
}
ACDC = TASKS["acdc2d"]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")


# --- who is who ---


def test_labeled_patients_bring_all_their_cases_in_the_order_of_the_protocol() -> None:
    split = split_cases(PATIENTS, ACDC, 2)
    assert split.labeled == ("p3_frame1", "p3_frame2", "p0_frame1", "p0_frame2")
    assert split.unlabeled == tuple(case for case in CASES[:20] if case[:3] not in ("p3_", "p0_"))
    assert split.test == tuple(CASES[20:])


def test_tuning_cases_leave_the_training_and_the_test_cases_stay_unseen() -> None:
    tuning = split_cases(PATIENTS, replace(ACDC, tuning=4), 1, "tuning")
    held_out = (*CASES[8:10], *CASES[16:18])  # p4 and p8: the third and the seventh of eight
    assert tuning.test == held_out
    rest = tuple(case for case in CASES[:20] if case not in held_out)
    assert tuning.unlabeled == tuple(case for case in rest if not case.startswith("p3_"))
    assert split_cases(PATIENTS, replace(ACDC, tuning=4), ALL, "tuning").labeled == rest


@pytest.mark.parametrize("count", [0, 3])
def test_a_count_that_the_protocol_cannot_label_is_refused(count: int) -> None:
    with pytest.raises(WrongUse, match="expected 1 to 2"):
        split_cases(PATIENTS, ACDC, count)


@needs_data
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("test", TESTS)
def test_real_splits_leak_nothing(task: Any, test: str) -> None:
    protocol = read_protocol(DATA, task)
    splits = [split_cases(protocol, task, count, test) for count in (1, 2, len(protocol[task.labeled]), ALL)]
    for split in splits:
        for one, other in combinations((split.labeled, split.unlabeled, split.test), 2):
            assert not set(one) & set(other)
        assert set(split.labeled) | set(split.unlabeled) == set(splits[-1].labeled)
        assert split.test == splits[0].test
        assert bool(set(split.test) & set(protocol["development_test"])) == (test == "development")
    owners = {test: {case.split("_frame")[0] for case in cases} for test, cases in vars(splits[-1]).items()}
    assert not owners["labeled"] & owners["test"], "a patient is trained on and tested on"
    assert set(splits[0].labeled) < set(splits[1].labeled), "more labels must contain the fewer"


@needs_data
def test_the_labels_of_the_real_protocols_are_used_in_their_order() -> None:
    la, acdc = (read_protocol(DATA, TASKS[name]) for name in ("la2d", "acdc2d"))
    assert list(split_cases(la, TASKS["la2d"], 8).labeled) == la["labeled_8"]
    assert acdc["labeled_7_patients"][:3] == acdc["labeled_3_patients"]


@needs_data
def test_tuning_cases_of_acdc_are_of_every_disease() -> None:
    """Its patients 1 to 100 are numbered by disease, twenty each; those of one are no measure for the others."""
    acdc = read_protocol(DATA, ACDC)
    patients = {int(case[7:10]) for case in split_cases(acdc, ACDC, 1, "tuning").test}
    assert {(number - 1) // 20 for number in patients} == {0, 1, 2, 3, 4}


def test_every_task_count_and_test_has_a_dataset_id_of_its_own() -> None:
    names = [
        dataset_name(task, labeled, test)
        for task in TASKS.values()
        for labeled in (*range(1, 17), ALL)
        for test in TESTS
    ]
    assert len({name[:10] for name in names}) == len(names)


# --- datasets ---


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    """Made patients, of which one is labeled."""
    folder = tmp_path / "data" / ACDC.folder
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for case in CASES:
        image, label = draw_case(random, (4, 32, 32), 1)
        write_image(folder / "images" / f"{case}.nii.gz", image[0])
        write_image(folder / "labels" / f"{case}.nii.gz", (label > 0).astype(np.uint8))
    (folder / "protocol.json").write_text(json.dumps(PATIENTS))
    return Preparation(tmp_path / "data", tmp_path / "work", ACDC, "development", 8, 4)


def test_labels_of_unlabeled_and_test_cases_never_enter_the_dataset(preparation: Preparation) -> None:
    split, dataset = preparation.split(1), preparation.dataset(1)
    preparation._write_raw(dataset, split)
    folder = preparation.folder("nnUNet_raw", dataset)
    assert {path.name for path in (folder / "labelsTr").iterdir()} == {f"{case}.nii.gz" for case in split.labeled}
    assert {path.name for path in (folder / "imagesUn").iterdir()} == {f"{c}_0000.nii.gz" for c in split.unlabeled}
    written = {path.name.split("_0000")[0].split(".")[0] for path in folder.rglob("*.nii.gz")}
    assert not written & set(split.test)
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == len(split.labeled) == 2


def test_fold_0_trains_on_exactly_the_labeled_cases(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(Preparation, "command", lambda self, *words: commands.append(words))
    split, dataset = preparation.split(1), preparation.dataset(1)
    preparation._write_raw(dataset, split)
    preparation._preprocess(dataset, split, "Dataset949_acdc_all")
    (fold,) = json.loads((preparation.folder("nnUNet_preprocessed", dataset) / "splits_final.json").read_text())
    assert fold["train"] == list(split.labeled)
    assert set(fold["val"]) < set(split.labeled)
    first = [command[0] for command in commands]
    commands.clear()
    preparation._preprocess(dataset, split, "Dataset949_acdc_all")
    assert "nnUNetv2_preprocess" in first and "nnUNetv2_preprocess" not in [command[0] for command in commands]


def test_a_failed_command_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nnUNetv2_nothing failed with exit code 1; its output is in .*child\.log"):
        run_child(["nnUNetv2_nothing"], environment(tmp_path), tmp_path / "child.log")
    assert "$ nnUNetv2_nothing" in (tmp_path / "child.log").read_text()


# --- scores and tables ---


def test_dice_of_known_masks() -> None:
    mask = np.array([True, True, False, False])
    assert dice(mask, mask) == 1
    assert dice(mask, ~mask) == 0
    assert dice(mask, np.array([True, False, False, False])) == pytest.approx(2 / 3)
    assert np.isnan(dice(mask & False, mask & False))


def test_gap_share_is_the_fraction_of_the_way_to_all_labels() -> None:
    assert gap_share(0.75, 0.75, 0.85) == 0
    assert gap_share(0.75, 0.80, 0.85) == pytest.approx(0.5)
    assert gap_share(0.75, 0.85, 0.85) == 1
    assert gap_share(0.75, 0.70, 0.85) == pytest.approx(-0.5)
    assert gap_share(0.75, 0.80, 0.75) is None
    assert gap_share(0.75, 0.80, 0.70) is None


def row(trainer: str, labeled: int | str, seed: int, score: float, **more: Any) -> dict[str, Any]:
    """A row as a run writes it."""
    protocol = {"task": "la", "test": "development", "configuration": "2d_w8_b8", "epochs": 25, "iterations": 50}
    identity = {**protocol, "device": "cpu", "mirroring": True, "trainer": trainer, "labeled": labeled, "seed": seed}
    return {**identity, "cases": 16, "dice_left atrium": score, "dice": score, "train_seconds": 60.0, **more}


def test_the_table_puts_mean_deviation_and_share_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append_row(path, row("nnUNetTrainerCPS", 2, 0, 0.79))
    append_row(path, row("nnUNetTrainer", ALL, 0, 0.85))
    append_row(path, row("nnUNetTrainerCPS", 2, 1, 0.81))
    append_row(path, row("nnUNetTrainer", 2, 0, 0.75, gpu_mib=812))
    assert markdown(read_rows(path)).splitlines() == [
        "la, 2d_w8_b8, 25 × 50 iterations, cpu, 16 development cases",
        "",
        "| trainer | labeled | seeds | left atrium | mean Dice | of the gap | training s | GPU MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| nnUNetTrainer | 2 | 1 | .750 | .750 | 0 % | 60 | 812 |",
        "| nnUNetTrainerCPS | 2 | 2 | .800 ± .014 | .800 ± .014 | 50 % | 60 |  |",
        "| nnUNetTrainer | all | 1 | .850 | .850 |  | 60 |  |",
    ]


def test_other_protocols_are_never_compared(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append_row(path, row("nnUNetTrainer", 2, 0, 0.75))
    append_row(path, {**row("nnUNetTrainer", ALL, 0, 0.9), "epochs": 100})
    append_row(path, {**row("nnUNetTrainer", 2, 0, 0.8, dice_RV=0.8), "task": "acdc"})
    tables = markdown(read_rows(path)).split("\n\n| trainer")
    assert len(tables) == 4, "three tables"
    assert not any("%" in table for table in tables)
    assert ["RV" in table for table in tables] == [False, False, False, True]


def test_mean_and_deviation_is_that_of_a_sample() -> None:
    assert mean_and_deviation([0.5]) == ".500"
    assert mean_and_deviation([0.5, 0.6, 0.7]) == ".600 ± .100"
    assert mean_and_deviation([1.0, 1.0]) == "1.000 ± .000"


def test_in_turns_gives_the_median_of_every_work() -> None:
    values = {"a": iter([3.0, 1.0, 100.0]), "b": iter([5.0, 6.0, 7.0])}
    assert in_turns({name: lambda it=it: next(it) for name, it in values.items()}, 3) == {"a": 3.0, "b": 6.0}


# --- the command line ---


class FakeRun:
    """A run that trains nothing."""

    def __init__(self, seed: int, fails: bool = False) -> None:
        self.trainer_name, self.labeled, self.seed, self.fails, self.executed = "nnUNetTrainer", 2, seed, fails, 0

    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in row("nnUNetTrainer", 2, self.seed, 0).items() if "dice" not in name}

    def execute(self, cores: list[int]) -> dict[str, Any]:
        self.executed += 1
        if self.fails:
            raise UserError("training failed; its output is in x.log")
        return row("nnUNetTrainer", 2, self.seed, 0.5)


def test_runs_that_are_done_are_skipped_and_a_failure_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.csv"
    append_row(path, row("nnUNetTrainer", 2, 0, 0.7))
    runs: Any = [FakeRun(0), FakeRun(1, fails=True), FakeRun(2)]
    assert script.execute(runs, path, jobs=1) == 1
    assert [run.executed for run in runs] == [0, 1, 1]
    assert [entry["seed"] for entry in read_rows(path)] == ["0", "2"]
    assert is_done(read_rows(path), runs[2].identity()) and not is_done(read_rows(path), runs[1].identity())
    assert "protocol.py: training failed; its output is in x.log" in capsys.readouterr().err


def test_a_command_line_names_the_trainers_as_nnunet_is_given_them(tmp_path: Path) -> None:
    words = "--task la2d --data d --trainers nnUNetTrainer nnUNetTrainerCPS --labeled 2 --seeds 0 3 --all-labels"
    args = script.parse([*words.split(), "--work", str(tmp_path), "--epochs", "25", "--iterations", "50"])
    runs = script.planned_runs(args)
    assert [(run.trainer_name, run.labeled) for run in runs[:3]] == [
        ("nnUNetTrainer_25epochs_50iters_seed0", 2),
        ("nnUNetTrainerCPS_25epochs_50iters_seed0", 2),
        ("nnUNetTrainer_25epochs_50iters_seed0", ALL),
    ]
    assert [run.seed for run in runs] == [0, 0, 0, 3, 3, 3]
    assert runs[0].preparation.configuration == "2d_w8_b8"
    run = script.planned_runs(script.parse([*words.split(), "--work", str(tmp_path), "--ending", "_nomirror"]))[1]
    assert run.trainer_name == "nnUNetTrainerCPS_nomirror_25epochs_50iters_seed0"


def test_an_ending_makes_other_runs_with_a_table_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    append_row(path, row("nnUNetTrainer", 2, 0, 0.7))  # as written before endings were
    append_row(path, row("nnUNetTrainer", 2, 0, 0.8, ending="_nomirror"))
    assert is_done(read_rows(path), {**row("nnUNetTrainer", 2, 0, 0.7), "ending": ""})
    assert not is_done(read_rows(path)[:1], {**row("nnUNetTrainer", 2, 0, 0.7), "ending": "_nomirror"})
    assert [".700" in table for table in markdown(read_rows(path)).split("\n\nla")] == [True, False]


def test_jobs_share_the_cores() -> None:
    dealt = script.shares([0, 1, 2, 3, 4], 2)
    assert [dealt.get(), dealt.get()] == [[0, 2, 4], [1, 3]]
    dealt = script.shares([0, 1], 3)
    assert [dealt.get() for _ in range(3)] == [[0], [1], [0]]


def test_missing_data_is_wrong_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--task", "la2d", "--data", str(tmp_path), "--work", str(tmp_path / "work")]) == 2
    assert "protocol.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_protocol_runs_end_to_end_and_continues(preparation: Preparation) -> None:
    words = "--task acdc2d --labeled 1 --seeds 0 --epochs 1 --iterations 2 --batch 2 --workers 1 --no-mirroring"
    folders = ["--data", str(preparation.data), "--work", str(preparation.work)]
    arguments = [*words.split(), *folders, "--trainers", "nnUNetTrainer", "nnUNetTrainerMeanTeacher"]
    command = [sys.executable, str(ROOT / "benchmarks" / "protocol.py"), *arguments]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    rows = read_rows(preparation.work / "results.csv")
    assert [entry["trainer"] for entry in rows] == ["nnUNetTrainer", "nnUNetTrainerMeanTeacher"]
    assert all(0 <= float(entry["dice"]) <= 1 and entry["cases"] == "4" for entry in rows)
    again = subprocess.run([*command, "--stage", "run", "table"], capture_output=True, text=True)
    assert again.returncode == 0 and "0 of 2 runs to do" in again.stderr
    assert again.stdout == first.stdout and "nnUNetTrainerMeanTeacher | 1 | 1 |" in again.stdout
    words = [sys.executable, str(ROOT / "benchmarks" / "deployed.py"), *arguments]
    both = subprocess.run(words, capture_output=True, text=True)
    assert both.returncode == 0, both.stderr
    (line,) = both.stdout.splitlines()[2:]
    student, teacher = re.fullmatch(
        r"\| nnUNetTrainerMeanTeacher \| 1 \| 0 \| ([.\d]+) \| \*\*([.\d]+)\*\* \|", line
    ).groups()
    assert float(teacher) == pytest.approx(float(rows[1]["dice"]), abs=1e-4) and 0 <= float(student) <= 1


@pytest.mark.slow
def test_the_speed_script_measures_steps_and_loading() -> None:
    words = "--dimension 2 --size 32 --batch 2 --repeats 2 --batches 2"
    command = [sys.executable, str(ROOT / "benchmarks" / "step.py"), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train_step / bare" in done.stdout and "two-stream / own" in done.stdout
