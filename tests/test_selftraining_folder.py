"""The folder of a self-training: whose it is, what is done in it, what a kill leaves, and the results."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from begun_selftraining import BASE, SETTINGS, TRAINER, begun
from begun_selftraining import own as own
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.selftraining.branch import branch, reserve
from nnunet_semi.selftraining.checks import IDS_LOCK, LOCK
from nnunet_semi.selftraining.folder import STATE, RunFolder
from nnunet_semi.selftraining.plan import (
    BEING_WRITTEN,
    all_steps,
    continue_training,
    models,
    remove_half_written,
    short_name,
)
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
from processes import wait_for

# --- the folder ---


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
    root = own()
    (root / "run").mkdir()
    with FileLock(root / "run" / LOCK), pytest.raises(UserError, match="another self-training is at"):
        selftrain(1, "2d", device="cpu", folder=root / "run")


class HasBegun(Exception):
    """Ends a self-training before its first command."""


def test_what_begins_at_once_gets_ids_of_its_own(own: Callable[..., Path]) -> None:
    """As the folds of a job array: the second one had chosen its ids when the first took them."""
    root = own()

    def report(line: str) -> None:
        if line.startswith("self-training in"):
            raise HasBegun

    def begin() -> None:
        with pytest.raises(HasBegun):
            selftrain(1, "2d", fold=1, rounds=2, device="cpu", folder=root / "run", report=report)

    second = Thread(target=begin)
    with FileLock(root / "nnUNet_raw" / IDS_LOCK):
        second.start()
        wait_for((root / "run" / LOCK).exists)
        reserve(BASE, "Dataset002_Tiny_2d_fold0_round1")
    second.join(timeout=60)
    assert json.loads((root / "run" / STATE).read_text())["datasets"] == [3, 4]
    names = ["Dataset003_Tiny_2d_fold1_round1", "Dataset004_Tiny_2d_fold1_round2"]
    assert sorted(path.name for path in (root / "nnUNet_raw").glob("Dataset*_fold1_*")) == names


@pytest.mark.parametrize("stop_early, expected", [(True, [0.5, 0.4]), (False, [0.5, 0.4, 0.9])])
def test_it_can_end_after_the_first_round_that_does_not_improve(
    own: Callable[..., Path], stop_early: bool, expected: list[float]
) -> None:
    """All that the rounds would do lies on disk, with a Dice that falls and rises again."""
    root, said = own(), list[str]()
    trainers = [f"{TRAINER}_{epochs}epochs" for epochs in (3, 2, 2)]
    run = begun(root / "run", replace(SETTINGS, stop_early=stop_early, trainers=trainers))
    for step in all_steps(run, "cpu"):
        run.mark_done(step.name, 1.0)
    for model, dice in zip(models(run), (0.5, 0.4, 0.9), strict=True):
        if model.round:
            branch(1, run.numbers[model.round - 1], short_name(run, model.round))
        (model.folder / "validation").mkdir(parents=True)
        summary = {"foreground_mean": {"Dice": dice}, "mean": {"1": {"Dice": dice}, "2": {"Dice": dice}}}
        (model.folder / "validation" / "summary.json").write_text(json.dumps(summary))
    options: dict[str, Any] = {"rounds": 2, "trainer": TRAINER, "epochs": (3, 2), "stop_early": stop_early}
    result = selftrain(1, "2d", device="cpu", folder=root / "run", report=said.append, **options)
    assert result is not None and [found.dice for found in result.rounds] == expected
    assert result.best is result.rounds[0 if stop_early else 2]
    assert ("round 1 is not better than those before; that was the last" in said) == stop_early


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
