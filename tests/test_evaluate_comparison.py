"""Statistics of scores against their definitions, and predictions that are compared case by case."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from label_map_folders import write
from nnunet_semi.cli import main
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.evaluation.comparison import MEAN, evaluate_and_compare
from nnunet_semi.evaluation.run import evaluate
from nnunet_semi.evaluation.statistics import (
    compare,
    resampled_means,
    signed_rank,
    summarise,
    summarise_mean_of_classes,
)

# --- statistics ---


def test_mean_and_standard_deviation_by_hand():
    (first, second) = summarise(np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 4.0]]))
    assert (first.mean, first.sd, first.cases) == (2, math.sqrt(2), 2)
    assert (second.mean, second.cases) == (4, 1) and math.isnan(second.sd) and math.isnan(second.low)


def test_the_interval_is_that_of_the_bootstrap_and_the_same_every_time():
    values = np.random.default_rng(3).normal(0.8, 0.1, (40, 1))
    (found,) = summarise(values)
    assert found == summarise(values)[0]
    means = values[np.random.default_rng(9).integers(0, 40, (20_000, 40)), 0].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.002)
    normal = 1.96 * found.sd / math.sqrt(40)
    assert (found.low, found.high) == pytest.approx((found.mean - normal, found.mean + normal), abs=0.005)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    table = rng.normal(0.0, 1.0, (50, 300))  # 300 experiments of 50 cases
    hits = [found.low < 0 < found.high for found in summarise(table)]
    assert 0.90 < np.mean(hits) < 0.98


def test_resampling_draws_whole_cases_and_leaves_out_what_is_undefined():
    values = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, np.nan]])
    means = resampled_means(values)
    assert means.shape == (10_000, 2)
    both = ~np.isnan(means).any(axis=1)
    assert 0.9 < both.mean() < 1  # sometimes only the third case is drawn
    assert set(np.round(means[both, 1], 6)) <= {10, 20, 15, round(40 / 3, 6), round(50 / 3, 6)}
    same = np.column_stack([values[:, 0]] * 2)
    np.testing.assert_array_equal(*resampled_means(same).T)


def test_the_mean_of_classes_is_nnunets_and_goes_without_classes_that_have_no_value():
    values = np.array([[1.0, 0.0, np.nan], [0.5, np.nan, np.nan]])
    assert summarise_mean_of_classes(values).mean == (0.75 + 0) / 2


def test_paired_differences_by_hand():
    first = np.array([[0.5, 0.2], [0.6, np.nan], [0.7, 0.4]])
    second = np.array([[0.6, 0.3], [0.8, 0.9], [np.nan, 0.4]])
    one, two, mean = compare(first, second)
    assert (one.cases, two.cases) == (2, 2)
    assert (one.first, one.second, one.mean) == pytest.approx((0.55, 0.7, 0.15))
    assert (two.first, two.second, two.mean) == pytest.approx((0.3, 0.35, 0.05))
    assert mean.cases == 3 and mean.mean == pytest.approx(((0.1 + 0.1) / 2 + 0.2 + 0.0) / 3)


def test_the_test_is_wilcoxons_and_knows_its_limits():
    differences = np.random.default_rng(0).normal(0.3, 1, 30)
    assert signed_rank(differences) == wilcoxon(differences).pvalue
    assert signed_rank(np.array([np.nan, *differences])) == signed_rank(differences)
    assert signed_rank(np.zeros(5)) == 1
    assert math.isnan(signed_rank(np.full(3, np.nan)))
    assert signed_rank(np.arange(1, 7) / 10) == 2 / 2**6  # all six in one direction


# --- comparison ---


@pytest.fixture
def three(tmp_path):
    """A reference and predictions of which the second differs less from it than the first, on ten images."""
    rng = np.random.default_rng(0)
    for number in range(10):
        reference = rng.integers(0, 3, (20, 20)).astype(np.uint8)
        write(tmp_path / "reference" / f"{number}.png", reference)
        for name, share in (("first", 0.4), ("second", 0.2), ("third", 0.4)):
            wrong = rng.random(reference.shape) < share
            write(
                tmp_path / name / f"{number}.png",
                np.where(wrong, rng.integers(0, 3, wrong.shape), reference).astype(np.uint8),
            )
    return tmp_path / "reference", [tmp_path / name for name in ("first", "second", "third")]


def test_comparison_is_with_the_first_case_by_case(three):
    reference, predictions = three
    found = evaluate_and_compare(reference, predictions, ("dice", "assd"))
    dice = [evaluate(reference, prediction).values("Dice") for prediction in predictions]
    second = found.differences["Dice"][str(predictions[1])]
    assert second[1].mean == pytest.approx((dice[1] - dice[0])[:, 0].mean())
    assert second[MEAN].p == pytest.approx(wilcoxon((dice[1] - dice[0]).mean(axis=1)).pvalue)
    assert second[MEAN].p < 0.01 < found.differences["Dice"][str(predictions[2])][MEAN].p
    assert second[MEAN].low > 0 and second[MEAN].cases == 10
    assert found.differences["ASSD"][str(predictions[1])][1].mean < 0
    text = found.as_text()
    assert (
        " ".join(text.split()).count("mean of classes second") == 2
        and "Wilcoxon" in text
        and f"to {predictions[0]}" in text
    )


def test_comparison_is_over_the_cases_that_all_have_and_all_classes(three):
    reference, predictions = three
    (predictions[1] / "3.png").unlink()
    for path in predictions[2].iterdir():
        write(path, np.zeros((20, 20), np.uint8))
    found = evaluate_and_compare(reference, predictions, chill=True)
    assert {len(evaluation.cases) for evaluation in found.evaluations.values()} == {9}
    assert found.differences["Dice"][str(predictions[2])][2].second == 0


def test_comparisons_are_written(three, tmp_path):
    reference, predictions = three
    found = evaluate_and_compare(reference, predictions, output=tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert tree["differences"] == json.loads(json.dumps(found.rows()))
    rows = list(csv.DictReader((tmp_path / "out" / "comparison.csv").open()))
    assert len(rows) == 2 * 3 and float(rows[0]["p"]) == found.rows()[0]["p"]
    with pytest.raises(UserError, match="--overwrite"):
        evaluate_and_compare(reference, predictions, output=tmp_path / "out")


def test_a_prediction_is_not_compared_with_itself(three):
    reference, (first, *_) = three
    for predictions in ([first], [first, first]):
        with pytest.raises(WrongUse, match="two or more, each once"):
            evaluate_and_compare(reference, predictions)


def test_the_command_compares(three, capsys):
    reference, predictions = three
    assert main(["evaluate", str(reference), str(predictions[0]), "--compare", *map(str, predictions[1:]), "-q"]) == 0
    assert "second" in capsys.readouterr().out
