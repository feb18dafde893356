"""The definitions of the scores, on predictions small enough to score by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nnunet_semi.filtering.estimators import agreement, certainty, confusion, dice_per_class
from nnunet_semi.filtering.shape_of_prediction import components, volumes, voxel_size

CLASSES = {"liver": (1,), "spleen": (2,)}
REGIONS = {"whole": (1, 2), "core": (2,)}
REFERENCE = np.array([[1, 1, 0, 2], [1, 1, 0, 2]], dtype=np.uint8)
MEMBER = np.array([[1, 1, 1, 2], [1, 0, 1, 0]], dtype=np.uint8)  # liver 5 voxels, 3 of them right; spleen 1 of 2


def logits_of(probabilities: list[list[float]]) -> torch.Tensor:
    """Logits (C × 1 × voxels) that softmax turns to these rows of probabilities, one row for each voxel."""
    return torch.tensor(probabilities).T.log()[:, None]


# --- agreement ---


def test_dice_by_hand() -> None:
    assert dice_per_class(MEMBER, REFERENCE, CLASSES) == {"liver": 2 * 3 / (4 + 5), "spleen": 2 * 1 / (2 + 1)}


def test_agreement_is_the_mean_over_members_of_the_mean_over_classes() -> None:
    score, scores = agreement([MEMBER, REFERENCE], REFERENCE, CLASSES)
    assert scores == {"liver": pytest.approx((2 / 3 + 1) / 2), "spleen": pytest.approx((2 / 3 + 1) / 2)}
    assert score == pytest.approx(5 / 6)


def test_a_class_absent_from_the_reference_is_skipped() -> None:
    only_liver = np.where(REFERENCE == 2, 0, REFERENCE).astype(np.uint8)
    score, scores = agreement([MEMBER], only_liver, CLASSES)
    assert scores["spleen"] is None
    assert score == scores["liver"] == pytest.approx(2 / 3)


def test_a_class_absent_from_a_member_counts_as_0() -> None:
    only_liver = np.where(REFERENCE == 2, 0, REFERENCE).astype(np.uint8)
    assert agreement([only_liver], REFERENCE, CLASSES) == (0.5, {"liver": 1.0, "spleen": 0.0})


def test_an_empty_reference_scores_0_whatever_the_others_say() -> None:
    empty = np.zeros_like(REFERENCE)
    for member in (empty, MEMBER):
        assert agreement([member], empty, CLASSES) == (0.0, {"liver": None, "spleen": None})


def test_the_order_of_members_and_classes_does_not_matter() -> None:
    members = [MEMBER, REFERENCE, np.zeros_like(MEMBER)]
    expected = agreement(members, REFERENCE, CLASSES)
    assert agreement(members[::-1], REFERENCE, dict(reversed(CLASSES.items()))) == expected


def test_regions_are_unions_of_labels() -> None:
    assert dice_per_class(MEMBER, REFERENCE, REGIONS) == {"whole": 2 * 4 / (6 + 6), "core": 2 * 1 / (2 + 1)}


def test_agreement_lies_between_0_and_1_in_3d_too() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 3, (2, 4, 5, 6), dtype=np.uint8)
    score, scores = agreement([second], first, CLASSES)
    for name, (label,) in CLASSES.items():
        a, b = first == label, second == label
        assert scores[name] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert 0 <= score <= 1
    assert agreement([first], first, CLASSES)[0] == 1


def test_confusion_counts_every_voxel_once() -> None:
    counts = confusion(MEMBER, REFERENCE, 3)
    assert counts.sum() == REFERENCE.size
    assert counts[1, 1] == 3 and counts[0, 1] == 2 and counts[2, 2] == 1 and counts[2, 0] == 1


# --- certainty ---


def entropy(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities if p)


def test_certainty_is_one_minus_the_mean_entropy_of_the_foreground() -> None:
    rows = [[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.9, 0.05, 0.05]]  # the last one is background
    reference = np.array([[1, 1, 2, 0]], dtype=np.uint8)
    score, scores = certainty(logits_of(rows), reference, CLASSES, regions=False)
    entropies = [entropy(*row) / math.log(3) for row in rows[:3]]
    assert score == pytest.approx(1 - np.mean(entropies), abs=1e-6)
    assert scores == {
        "liver": pytest.approx(1 - np.mean(entropies[:2]), abs=1e-6),
        "spleen": pytest.approx(1 - entropies[2], abs=1e-6),
    }


def test_certainty_is_a_mean_and_does_not_depend_on_the_size_of_the_object() -> None:
    row = [0.2, 0.7, 0.1]
    small = certainty(logits_of([row]), np.ones((1, 1), np.uint8), CLASSES, False)[0]
    large = certainty(logits_of([row] * 500), np.ones((1, 500), np.uint8), CLASSES, False)[0]
    assert small == pytest.approx(large, abs=1e-6)


@pytest.mark.parametrize(("row", "expected"), [([1 / 3, 1 / 3, 1 / 3], 0.0), ([1e-30, 1.0, 1e-30], 1.0)])
def test_certainty_is_0_for_a_guess_and_1_for_no_doubt(row: list[float], expected: float) -> None:
    score, _ = certainty(logits_of([row]), np.ones((1, 1), np.uint8), CLASSES, False)
    assert score == pytest.approx(expected, abs=1e-6)


def test_certainty_of_half_precision_and_large_logits_is_finite() -> None:
    logits = torch.tensor([[-60000.0], [60000.0], [0.0]], dtype=torch.half)[:, None]
    assert certainty(logits, np.ones((1, 1), np.uint8), CLASSES, False)[0] == 1.0
    assert certainty(logits[:2], np.ones((1, 1), np.uint8), REGIONS, True)[0] == 1.0


def test_certainty_of_regions_is_that_of_their_own_outputs() -> None:
    p = torch.tensor([[0.9, 0.8, 0.1], [0.3, 0.6, 0.1]])  # outputs × voxels
    reference = np.array([[1, 2, 0]], dtype=np.uint8)
    score, scores = certainty(torch.logit(p)[:, None], reference, REGIONS, regions=True)

    def binary(q: float) -> float:
        return entropy(q, 1 - q) / math.log(2)

    assert score == pytest.approx(1 - np.mean([binary(0.9), binary(0.3), binary(0.8), binary(0.6)]), abs=1e-6)
    assert scores["whole"] == pytest.approx(1 - np.mean([binary(0.9), binary(0.8)]), abs=1e-6)
    assert scores["core"] == pytest.approx(1 - binary(0.6), abs=1e-6)


def test_an_empty_prediction_has_certainty_0() -> None:
    empty = np.zeros((1, 2), np.uint8)
    expected = 0.0, {"liver": None, "spleen": None}
    assert certainty(logits_of([[0.9, 0.05, 0.05]] * 2), empty, CLASSES, False) == expected


# --- volumes and components ---


def test_volumes_are_voxels_times_their_size() -> None:
    assert volumes(REFERENCE, CLASSES, 2.5) == {"liver": 10.0, "spleen": 5.0}
    assert volumes(REFERENCE, REGIONS, 1.0) == {"whole": 6.0, "core": 2.0}
    assert volumes(np.zeros((2, 2), np.uint8), CLASSES, 1.0) == {"liver": 0.0, "spleen": 0.0}


def test_components_touch_at_corners_and_regions_join_their_labels() -> None:
    prediction = np.zeros((3, 6, 6), np.uint8)
    prediction[0, 0, 0] = prediction[1, 1, 1] = 1  # touch at a corner
    prediction[2, 5, 5] = 1
    prediction[2, 5, 4] = 2  # beside the last one
    assert components(prediction, CLASSES) == {"liver": 2, "spleen": 1}
    assert components(prediction, REGIONS) == {"whole": 2, "core": 1}
    assert components(np.zeros((2, 2, 2), np.uint8), CLASSES) == {"liver": 0, "spleen": 0}


def test_voxels_of_2d_images_are_areas() -> None:
    picture = {"spacing": [999.0, 0.5, 0.5], "shape_before_cropping": (1, 8, 8)}
    assert voxel_size(picture, [0.5, 0.4], [0, 1, 2]) == pytest.approx(0.2)
    volume = {"spacing": [0.5, 0.6, 5.0], "shape_before_cropping": (9, 8, 8)}
    assert voxel_size(volume, [0.5, 0.4], [2, 0, 1]) == pytest.approx(1.0)  # slices stay 5 mm apart
    assert voxel_size(volume, [2.0, 0.5, 0.4], [2, 0, 1]) == pytest.approx(0.4)
