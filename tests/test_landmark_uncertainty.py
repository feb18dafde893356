"""Agreement of several predictions, and uncertainties that hold what they promise on cases that were not seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from nnunet_semi.landmarks.calibration import (
    COVERAGE,
    calibrate,
    conformal_factor,
    uncalibrated,
)
from nnunet_semi.landmarks.heatmaps import BLOB_LEVEL
from nnunet_semi.landmarks.uncertainty import Consensus, agree


def consensus(peak, width=1.0, spread=0.0):
    peak = np.asarray(peak, float)
    return Consensus(np.zeros((*peak.shape, 2)), peak, np.full(peak.shape, width), np.full(peak.shape, spread))


# --- agreement ---


def test_one_prediction_is_itself():
    world = np.array([[[1.0, 2.0], [3.0, 4.0]]])
    found = agree(world, np.full((1, 2), 0.8), np.full((1, 2), 1.5), 2.0)
    assert found.world == pytest.approx(world[0], rel=1e-12) and found.spread == pytest.approx([0, 0], abs=1e-12)
    assert found.peak.tolist() == [0.8, 0.8] and found.width.tolist() == [1.5, 1.5]


def test_predictions_that_are_close_are_averaged_by_their_peaks():
    world = np.array([[[0.0, 0.0]], [[1.0, 0.0]]])
    found = agree(world, np.array([[0.9], [0.3]]), np.ones((2, 1)), 2.0)
    assert found.world[0] == pytest.approx([0.25, 0.0])
    assert found.spread[0] == pytest.approx(np.sqrt((0.25**2 + 0.75**2) / 2))


def test_one_fold_that_is_far_off_moves_nothing_but_shows_in_the_spread():
    world = np.array([[[0.0, 0.0]], [[0.2, 0.0]], [[0.1, 0.1]], [[0.1, -0.1]], [[60.0, 0.0]]])
    found = agree(world, np.ones((5, 1)), np.ones((5, 1)), 2.0)
    assert found.world[0] == pytest.approx([0.1, 0.0])
    assert found.spread[0] == pytest.approx(59.9 / np.sqrt(5), rel=1e-2)


@pytest.mark.parametrize("peaks", [[0.9, 0.2], [0.5, 0.4, 0.3, 0.4]])
def test_of_halves_that_do_not_agree_the_surer_one_counts(peaks):
    """As of an image and its mirrored copy, or of two folds."""
    half = len(peaks) // 2
    world = np.array([[[0.0, 0.0]]] * half + [[[60.0, 0.0]]] * half)
    found = agree(world, np.array(peaks)[:, None], np.ones((len(peaks), 1)), 2.0)
    assert found.world[0] == pytest.approx([0.0, 0.0])
    assert found.spread[0] == pytest.approx(60 / np.sqrt(2))


def test_low_wide_and_scattered_peaks_are_less_certain():
    sure = consensus([0.9]).scale[0]
    assert sure < consensus([0.2]).scale[0]
    assert sure < consensus([0.9], width=3.0).scale[0]
    assert sure < consensus([0.9], spread=2.0).scale[0]


# --- regions ---


def world_of(random, cases, landmarks=6, lacking=0.0):
    """Errors whose size follows the scale, by another factor for each landmark; peaks lower where nothing is there."""
    scales = random.lognormal(0, 0.6, (cases, landmarks))
    factors = np.linspace(0.5, 3.0, landmarks)
    errors = scales * factors * np.hypot(*random.normal(size=(2, cases, landmarks)))
    present = random.random((cases, landmarks)) >= lacking
    peaks = expit(random.normal(np.where(present, 1.0, -1.5), 1.0))
    return np.where(present, errors, np.nan), scales, peaks, present


@pytest.mark.parametrize("cases", [5, 60])
def test_regions_hold_90_percent_of_cases_that_were_not_seen(cases):
    random = np.random.default_rng(0)
    held = []
    for _ in range(200):
        found = calibrate(*world_of(random, cases), dim=2)
        errors, scales, _, _ = world_of(random, 40)
        held.append(errors <= found.factors * scales)
    held = np.concatenate(held)
    # 200 calibrations: their mean coverage has a standard error below half a percent
    assert held.mean() == pytest.approx(COVERAGE, abs=0.025)
    if cases >= 20:  # each landmark has a factor of its own, so that the difficult ones are not left short
        assert np.abs(held.mean(axis=0) - COVERAGE).max() < 0.025


def test_the_factor_is_the_conformal_quantile():
    ratios = np.arange(1.0, 20.0)[::-1]  # 19 values: ⌈20 · .9⌉ = 18
    assert conformal_factor(ratios) == 18.0
    assert conformal_factor(ratios[:8]) is None  # ⌈9 · .9⌉ = 9 of 8
    assert conformal_factor(ratios[:9]) == 19.0


def test_too_few_validation_cases_leave_the_gaussian_assumption():
    found = calibrate(*world_of(np.random.default_rng(0), 1, 3), dim=2)
    np.testing.assert_array_equal(found.factors, uncalibrated(3, 2).factors)


@pytest.mark.parametrize("dim", [2, 3])
def test_without_calibration_a_gaussian_of_the_width_is_assumed(dim):
    random = np.random.default_rng(1)
    errors = np.linalg.norm(random.normal(size=(20_000, dim)), axis=1)
    assert (errors <= uncalibrated(1, dim).factors[0]).mean() == pytest.approx(COVERAGE, abs=0.01)


# --- presence ---


def test_without_calibration_presence_is_even_where_stock_nnunet_begins_to_draw():
    found = uncalibrated(2, 2).presence(consensus([BLOB_LEVEL, 0.9]))
    assert found[0] == pytest.approx(0.5) and found[1] > 0.95


def test_probabilities_are_those_of_the_validation_cases():
    random = np.random.default_rng(2)
    errors, scales, peaks, present = world_of(random, 400, lacking=0.3)
    found = calibrate(errors, scales, peaks, present, dim=2)
    _, _, peaks, present = world_of(random, 4000, lacking=0.3)
    probability = found.presence(consensus(peaks.ravel()))
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 1.0)):
        chosen = (probability >= low) & (probability < high)
        # thousands of values in each bin, and a logistic curve is the truth of this world
        assert present.ravel()[chosen].mean() == pytest.approx(probability[chosen].mean(), abs=0.04)
    assert found.threshold == 0.5


def test_peaks_that_separate_perfectly_do_not_become_certainty():
    peaks = np.where(np.arange(40)[:, None] < 10, 0.1, 0.9)
    found = calibrate(np.ones((40, 1)), np.ones((40, 1)), peaks, peaks > 0.5, dim=2)
    low, high = found.presence(consensus([0.1, 0.9]))
    assert 0.0 < low < 0.2 and 0.9 < high < 1.0
    assert np.isfinite(logit(high))


def test_where_nothing_is_missing_nothing_is_declared_missing():
    found = calibrate(*world_of(np.random.default_rng(0), 30), dim=2)
    assert found.threshold == 0.0
