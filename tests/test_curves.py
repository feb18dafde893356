"""The curves: one value an epoch, beside nnU-Net's own, in one picture, one table and the checkpoint."""

from __future__ import annotations

import csv
import random

import numpy as np
import pytest
from PIL import Image

from nnunet_semi.curves import KEPT, SHARES, CurveLogger, class_curves, distrusted, log_line, starved, vanished

CURVES = ["semi_loss_labeled", "semi_loss_unlabeled", "semi_weight", "semi_confidence"]


def filled(epochs: int, curves: list[str] = CURVES) -> CurveLogger:
    random.seed(0)
    logger = CurveLogger(curves, ["background", "disc"])
    for name, values in logger.my_fantastic_logging.items():
        values.extend([[0.25, 0.75]] * epochs if name == SHARES else [random.random() for _ in range(epochs)])
    return logger


def test_progress_png_grows_by_a_panel_and_is_drawn_anew_each_time(tmp_path):
    from nnunetv2.training.logging.nnunet_logger import LocalLogger

    logger = filled(3)
    LocalLogger.plot_progress_png(logger, str(tmp_path))
    with Image.open(tmp_path / "progress.png") as picture:
        own = picture.size
    for _ in range(2):
        logger.plot_progress_png(str(tmp_path))
        with Image.open(tmp_path / "progress.png") as picture:
            assert picture.width == own[0]
            assert own[1] + 1000 < picture.height < own[1] + 1300  # 12 inches at 100 dpi below nnU-Net's 54


def test_the_table_has_a_row_per_epoch(tmp_path):
    logger = filled(3)
    logger.plot_progress_png(str(tmp_path))
    with (tmp_path / "progress_semi.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [float(row["share_disc"]) for row in rows] == [0.75] * 3
    first = logger.my_fantastic_logging["semi_weight"][0]
    assert float(rows[0]["semi_weight"]) == pytest.approx(first, rel=1e-5)


def test_a_class_whose_pseudo_labels_shrink_is_told_once():
    shares = [0.5, 0.03, 0.06, 0.02, 0.0059, 0.004, 0.03, 0.001]  # of the second class; nothing was known in epoch 0
    rows = [[1 - share, share, 0.0] for share in shares]
    told = {epoch: vanished(rows[: epoch + 1], ["background", "disc", "never"]) for epoch in range(len(rows))}
    assert [epoch for epoch, warnings in told.items() if warnings] == [4, 7]
    [warning] = told[4]
    assert warning.startswith("warning: pseudo labels of disc take less than a tenth")
    assert vanished([[], [], [0.5, 0.5], [1.0, 0.0]], ["background", "disc"]) != []  # epochs of a stock checkpoint


def test_a_class_of_which_nothing_counts_is_told_once():
    shares = [0.0, 0.0, 0.005, 0.5, float("nan"), 0.0]  # of the second class; unlabeled images count from epoch 1
    rows = [[0.9, share, 0.8] for share in shares]
    counting = [False, *[True] * 5]
    end = range(1, len(rows) + 1)
    told = [starved(rows[:n], counting[:n], ["background", "disc", "ring"]) for n in end]
    assert [epoch for epoch, warnings in enumerate(told) if warnings] == [1, 5]
    [warning] = told[1]
    assert warning.startswith("warning: next to no pseudo label of disc")
    assert starved([[], [0.9, 0.0]], [True, True], ["background", "disc"]) != []  # an epoch of a stock checkpoint


def test_pseudo_labels_that_are_trusted_less_than_half_are_told_once():
    trust = [float("nan"), 1.0, 0.6, 0.4, 0.7, 0.2]  # NaN: an epoch of a stock checkpoint
    told = [distrusted(trust[:n]) for n in range(len(trust) + 1)]
    assert [epoch for epoch, warnings in enumerate(told, -1) if warnings] == [3]
    assert told[4][0].startswith("warning: unlabeled images count less than half of what they would (trust)")


def test_curves_go_through_a_checkpoint():
    logger, other = filled(2), CurveLogger(CURVES, ["background", "disc"])
    other.load_checkpoint(logger.get_checkpoint())
    other.log("semi_weight", 0.5, 2)
    assert other.get_value("semi_weight", None)[:2] == filled(2).get_value("semi_weight", None)


def test_a_stock_checkpoint_fills_the_missing_epochs(tmp_path):
    stock = {k: v for k, v in filled(2).get_checkpoint().items() if not k.startswith("semi")}
    logger = CurveLogger(CURVES, ["background", "disc"])
    logger.load_checkpoint(stock)
    for name in CURVES:
        logger.log(name, 0.5, 2)  # nnU-Net's logger asserts that epochs line up
    logger.log(SHARES, [0.5, 0.5], 2)
    assert len(logger.get_value(SHARES, None)) == 3


def test_a_curve_of_a_users_own_is_drawn_and_logged(tmp_path):
    logger = filled(2, [*CURVES, "entropy"])
    logger.plot_progress_png(str(tmp_path))
    assert "entropy" in (tmp_path / "progress_semi.csv").read_text().splitlines()[0]
    assert log_line({"semi_loss_labeled": 0.5, "entropy": 0.25}) == "semi: loss_x 0.500  entropy 0.250"


def test_log_line_names_the_losses_and_the_weight():
    curves = dict(zip(CURVES, [0.412, 0.087, 0.35, 0.94], strict=True))
    assert log_line(curves) == "semi: loss_x 0.412  loss_u 0.087 (w 0.3500)  confidence 0.940"
    lists = {SHARES: [0.9, 0.1], KEPT: [0.99, float("nan")]}
    assert log_line(curves, lists).endswith("  confidence 0.940  shares 0.900 0.100  kept of each 0.990 nan")


def test_kept_voxels_are_told_per_class():
    """As a part of the voxels of the class in the epoch, whatever their number in each step was."""
    steps = np.array([[0.5, 0.5, 0.0, 0.5, 0.1, 0.0], [0.9, 0.1, 0.0, 0.9, 0.0, 0.0]])
    curves = class_curves(steps.mean(0), 3)
    assert curves[SHARES] == pytest.approx([0.7, 0.3, 0.0])
    assert curves[KEPT] == pytest.approx([1.0, 1 / 6, float("nan")], nan_ok=True)
    assert list(class_curves(steps.mean(0)[:3], 3)) == [SHARES]


def test_methods_that_leave_voxels_out_have_a_fourth_axis_and_further_columns(tmp_path):
    logger = CurveLogger(CURVES, ["background", "disc"], (SHARES, KEPT))
    for name, values in logger.my_fantastic_logging.items():
        values.extend([[0.25, float("nan")]] * 2 if name in (SHARES, KEPT) else [random.random() for _ in range(2)])
    logger.plot_progress_png(str(tmp_path))
    with (tmp_path / "progress_semi.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["kept_background"] == "0.25" and rows[1]["kept_disc"] == "nan"
    assert "share_disc" in rows[0]
    older = {key: value for key, value in logger.get_checkpoint().items() if key != KEPT}
    logger.load_checkpoint(older)
    logger.log(KEPT, [1.0, 1.0], 2)
    assert len(logger.get_value(KEPT, None)) == 3
    assert logger._panel().size == (3000, 1200)
