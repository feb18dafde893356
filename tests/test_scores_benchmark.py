"""The benchmark of the estimators: its measures, and the bad cases that it plants."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from cases import TASKS, read_protocol, split_cases  # noqa: E402
from nnunet_semi.filtering.table import Row  # noqa: E402
from planted import KINDS, PREFIX, PlantedPreparation, emptiest_corner  # noqa: E402
from scores import Benchmark, arguments_with_planted, measured, roc_auc  # noqa: E402
from thresholds import Histogram  # noqa: E402

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")


def test_roc_auc_counts_pairs_and_half_of_ties() -> None:
    assert roc_auc([0.9, 0.8], [0.1]) == 1.0
    assert roc_auc([0.1], [0.9, 0.8]) == 0.0
    assert roc_auc([0.5, 0.7], [0.5, 0.6]) == (0.5 + 0 + 1 + 1) / 4


def test_the_measures_tell_cases_that_belong_from_planted_ones() -> None:
    scores = {"a": 0.2, "b": 0.6, "c": 0.9, **{f"{PREFIX}{kind}_0": number / 5 for number, kind in enumerate(KINDS)}}
    rows = [Row(case, score, True, {}, {}, {}) for case, score in scores.items()]
    found = measured(rows, {"a": 0.5, "b": 0.7, "c": 0.8})
    assert found["spearman"] == 1.0
    assert found["auc_modality"] == 1.0 and found["auc_noise"] == pytest.approx(2.5 / 3)
    assert found["auc_all"] == pytest.approx((3 + 2.5 + 2 + 1.5) / 12)


def test_the_emptiest_corner_holds_the_fewest_labels() -> None:
    label = np.ones((4, 6, 8), np.uint8)
    label[2:, :3, 4:] = 0
    values = np.arange(label.size).reshape(label.shape)
    assert np.array_equal(emptiest_corner(values, label), values[2:, :3, 4:])


@needs_data
def test_planted_cases_are_made_of_cases_that_are_not_used_otherwise(tmp_path: Path) -> None:
    task = TASKS["la2d"]
    preparation = PlantedPreparation(DATA, tmp_path, task, "development", 8, 8, unlabeled=3, planted=1)
    split = preparation.split(2)
    assert split.unlabeled == split_cases(read_protocol(DATA, task), task, 2).unlabeled[:3]
    assert preparation.dataset(2) == "Dataset722_la_2_planted"
    bad = dict(preparation._bad_cases(split))
    assert list(bad) == [f"{PREFIX}{kind}_0" for kind in KINDS]


@needs_data
def test_the_models_of_the_benchmark_have_the_ending_in_their_names(tmp_path: Path) -> None:
    line = ["--data", str(DATA), "--task", "la2d", "--work", str(tmp_path), "--ending", "_nomirror"]
    model = Benchmark(arguments_with_planted("").parse_args(line)).model("nnUNetTrainerCPS")
    assert model.name == "nnUNetTrainerCPS_nomirror_15epochs_50iters__nnUNetPlans__2d_w8_b8"


def test_kept_right_and_reached_are_shares_of_the_pseudo_label_and_of_the_class() -> None:
    histogram = Histogram(3)
    true, label = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 1, 1, 1, 1, 0])
    second = np.array([2, 2, 0, 0, 0, 0, 1])
    histogram.add(true, label, second, np.array([0.99, 0.94, 0.6, 0.7, 0.9, 0.5, 0.7]))
    background, structure, _ = histogram.at([0.95, 0.6, 0.95])
    # of three voxels labeled 0 one reaches .95, one the .6 of its runner-up, which is right for the first
    assert background == {"kept": pytest.approx(2 / 3), "right": 0.5, "reached": pytest.approx(1 / 3)}
    # three of four voxels labeled 1 count, of which two are, and those are two of the four that are there
    assert structure == {"kept": 0.75, "right": pytest.approx(2 / 3), "reached": 0.5}
    nothing = histogram.at([0.95] * 3)[1]
    assert nothing["kept"] == nothing["reached"] == 0 and np.isnan(nothing["right"])
