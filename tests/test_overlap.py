"""Joint counts, Dice and IoU: by hand, against nnU-Net's own counting, and with ignored voxels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask

from nnunet_semi.evaluation import overlap
from nnunet_semi.evaluation.overlap import Overlap, joint_counts, mask_of, members


def random_pair(seed=0, labels=4, shape=(5, 6, 7), dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, labels, (2, *shape)).astype(dtype)


def test_dice_and_iou_by_hand():
    found = Overlap(tp=3, fp=1, fn=2, tn=4)
    assert (found.n_pred, found.n_ref) == (4, 5)
    assert found.dice() == 6 / 9
    assert found.iou() == 3 / 6
    assert found.as_nnunet() == {
        "Dice": 6 / 9, "IoU": 0.5, "FP": 1, "TP": 3, "FN": 2, "TN": 4, "n_pred": 4, "n_ref": 5,
    }  # fmt: skip


def test_empty_masks():
    assert math.isnan(Overlap(0, 0, 0, 9).dice()) and math.isnan(Overlap(0, 0, 0, 9).iou())
    assert Overlap(0, 0, 3, 6).dice() == Overlap(0, 3, 0, 6).iou() == 0
    assert Overlap(0, 0, 0, 9).dice(smooth=1e-6) == 1
    assert 0 < Overlap(0, 3, 0, 6).dice(smooth=1e-6) < 1e-6


@pytest.mark.parametrize("label", [1, 3, (1, 2), (2, 3), (1, 9), 9])
@pytest.mark.parametrize("ignore", [None, 3])
def test_counts_are_those_of_nnunet(label, ignore):
    reference, prediction = random_pair()
    found = joint_counts(reference, prediction, ignore).overlap(label)
    masks = (region_or_label_to_mask(array, label) for array in (reference, prediction))
    ignored = reference == ignore if ignore is not None else None
    assert (found.tp, found.fp, found.fn, found.tn) == compute_tp_fp_fn_tn(*masks, ignored)


def test_labels_above_255_are_counted_like_small_ones():
    reference, prediction = random_pair(dtype=np.uint16)
    names = np.array([0, 7, 300, 65535], np.uint16)
    small, large = joint_counts(reference, prediction), joint_counts(names[reference], names[prediction])
    assert large.labels == [0, 7, 300, 65535]
    np.testing.assert_array_equal(small.counts, large.counts)
    assert large.overlap((7, 65535)) == small.overlap((1, 3))


def test_counting_in_chunks_changes_nothing(monkeypatch):
    reference, prediction = random_pair(shape=(11, 13))
    expected = joint_counts(reference, prediction).counts
    monkeypatch.setattr(overlap, "CHUNK", 10)
    np.testing.assert_array_equal(joint_counts(reference, prediction).counts, expected)


def test_counts_do_not_depend_on_the_order_in_memory():
    reference, prediction = random_pair()
    np.testing.assert_array_equal(
        joint_counts(reference.T, prediction.T).counts, joint_counts(reference, prediction).counts
    )


def test_only_labels_that_occur_are_listed():
    counts = joint_counts(np.array([[0, 5]], np.uint8), np.array([[0, 9]], np.uint8))
    assert counts.labels == [0, 5, 9]
    assert counts.counts.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert joint_counts(*np.zeros((2, 0, 3), np.uint8)).labels == []


def test_masks_of_labels_and_regions():
    array = np.array([0, 1, 2, 3], np.uint8)
    assert mask_of(array, 2).tolist() == [False, False, True, False]
    assert mask_of(array, (1, 3)).tolist() == [False, True, False, True]
    assert members(2) == (2,) and members((1, 3)) == (1, 3)
