"""Thresholds of confidence and uncertainty, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from nnunet_semi.consistency.pseudo_label import class_shares, pseudo_label
from nnunet_semi.consistency.thresholds import ClassThresholds, entropy, entropy_limit


def voxels(*pairs: tuple[int, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pseudo label and confidence of a row of voxels."""
    label, confidence = zip(*pairs, strict=True)
    return torch.tensor(label).view(1, 1, 1, -1), torch.tensor(confidence).view(1, 1, 1, -1)


def test_thresholds_are_in_proportion_to_the_mean_confidence_of_each_class():
    thresholds = ClassThresholds(3, threshold=0.9)
    thresholds.update(*voxels((0, 1.0), (0, 0.9), (1, 0.6), (1, 0.5), (2, 0.475)))
    torch.testing.assert_close(thresholds.thresholds, 0.9 * torch.tensor([1.0, 0.55 / 0.95, 0.5]))


def test_averages_follow_the_definition():
    generator = torch.Generator().manual_seed(0)
    thresholds = ClassThresholds(2, decay=0.6)
    average = torch.zeros(2)
    for count in range(6):
        label = torch.randint(0, 2, (2, 1, 5, 5), generator=generator)
        confidence = torch.rand(2, 1, 5, 5, generator=generator)
        thresholds.update(label, confidence)
        decay = min(1 - 1 / (count + 1), 0.6)
        mean = torch.stack([confidence[label == index].mean() for index in (0, 1)])
        average = decay * average + (1 - decay) * mean
    torch.testing.assert_close(thresholds.confidence, average)


def test_a_rare_unsure_class_takes_part_where_a_fixed_threshold_starves_it():
    """A large class at 99 % and a small structure at 60 to 80 %, as reported for tumours in CT."""
    logits = torch.zeros(1, 3, 100, 100)
    logits[:, 0] = 6
    tumour = torch.linspace(6.5, 7.5, 100).view(10, 10)
    logits[0, 2, :10, :10] = tumour
    label, confidence = pseudo_label(logits)
    assert class_shares(label, 3)[2] == pytest.approx(0.01)
    thresholds = ClassThresholds(3)
    thresholds.update(label, confidence)
    fixed, adaptive = confidence >= 0.95, thresholds(logits, label, confidence)
    assert class_shares(label, 3, fixed)[2] == 0
    assert 0.004 < class_shares(label, 3, adaptive)[2] < 0.01  # not all of them either
    assert class_shares(label, 3, fixed)[0] == class_shares(label, 3, adaptive)[0]


@pytest.mark.parametrize("regions", [False, True])
def test_an_overflow_changes_no_threshold(regions):
    """In half precision a logit can be infinite; nnU-Net's gradient scaler then leaves the step out."""
    logits = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    thresholds = ClassThresholds(3, regions)
    thresholds.update(*pseudo_label(logits, regions))
    before = thresholds.thresholds
    overflown = logits.clone()
    overflown[0, 1, 2, 2] = math.nan if regions else math.inf
    label, confidence = pseudo_label(overflown, regions)
    assert confidence.isnan().any()
    thresholds.update(label, confidence)
    changed = thresholds.thresholds != before
    assert thresholds.thresholds.isfinite().all() and not changed[1] and not changed[-1]
    assert thresholds(logits, *pseudo_label(logits, regions)).any()


def test_a_class_that_was_never_seen_has_the_highest_threshold_and_a_class_that_is_absent_keeps_its_own():
    thresholds = ClassThresholds(3)
    thresholds.update(*voxels((0, 0.9), (1, 0.6)))
    assert thresholds.thresholds[2] == pytest.approx(0.95)
    before = thresholds.thresholds[1].item()
    thresholds.update(*voxels((0, 0.9), (2, 0.5)))
    assert thresholds.thresholds[1] == pytest.approx(before)
    assert thresholds.updates.tolist() == [2, 1, 1]


def test_before_the_first_batch_all_thresholds_are_the_fixed_one():
    assert ClassThresholds(4, threshold=0.8).thresholds.tolist() == pytest.approx([0.8] * 4)


def test_regions_have_a_threshold_each_and_one_for_what_lies_outside():
    label = torch.tensor([[True, True, False, False], [True, False, False, False]]).view(1, 2, 1, 4)
    confidence = torch.tensor([[0.9, 0.8, 1.0, 1.0], [0.6, 1.0, 1.0, 1.0]]).view(1, 2, 1, 4)
    thresholds = ClassThresholds(2, regions=True, threshold=0.9)
    thresholds.update(label, confidence)
    torch.testing.assert_close(thresholds.thresholds, torch.tensor([0.9 * 0.85, 0.9 * 0.6, 0.9]))
    mask = thresholds(torch.empty(0), label, torch.tensor([0.77, 0.76]).view(1, 2, 1, 1).expand(1, 2, 1, 4))
    assert mask.view(2, 4).tolist() == [[True] * 4, [True] * 4]
    mask = thresholds(torch.empty(0), label, torch.tensor([0.76, 0.53]).view(1, 2, 1, 1).expand(1, 2, 1, 4))
    assert not mask.any()  # neither inside of a region nor outside of it


def test_both_sides_of_a_border_count_alike():
    """Between a structure and the background the lower threshold counts for both, far from it the background's own."""
    thresholds = ClassThresholds(3, threshold=0.9)
    thresholds.update(*voxels((0, 1.0), (1, 0.6), (2, 0.8)))  # thresholds .9, .54 and .72
    probability = torch.tensor(
        [
            [0.40, 0.58, 0.02],  # likeliest 1, then 0: .54
            [0.58, 0.40, 0.02],  # 0, then 1: .54 too
            [0.58, 0.02, 0.40],  # 0, then 2: .72
            [0.02, 0.40, 0.58],  # 2, then 1: .54
            [0.75, 0.05, 0.20],  # 0, then 2, above .72
            [0.50, 0.48, 0.02],  # below all
        ]
    )
    logits = probability.log().T.reshape(1, 3, 1, 6)
    mask = thresholds(logits, *pseudo_label(logits))
    assert mask.flatten().tolist() == [True, True, False, True, True, False]


def test_state_goes_through_a_checkpoint():
    first, second = ClassThresholds(2), ClassThresholds(2)
    first.update(*voxels((0, 0.9), (1, 0.6)))
    second.load_state_dict(first.state_dict())
    for thresholds in (first, second):
        thresholds.update(*voxels((0, 0.8), (1, 0.7)))
    assert torch.equal(first.thresholds, second.thresholds)


def test_entropy_is_that_of_the_definition_and_finite_for_certain_voxels():
    probability = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]).T.reshape(1, 3, 1, 3)
    expected = [1.5 * math.log(2), 0.0, math.log(3)]
    assert entropy(probability).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert entropy(torch.tensor([[[[0.5, 1.0, 0.0]]]]), regions=True).flatten().tolist() == pytest.approx(
        [math.log(2), 0, 0]
    )


@pytest.mark.parametrize(("ramp", "share"), [(0.0, 0.75), (0.4, 0.85), (1.0, 1.0)])
def test_entropy_limit_is_a_share_of_ln_c(ramp, share):
    assert entropy_limit(5, regions=False, ramp=ramp) == pytest.approx(share * math.log(5))
    assert entropy_limit(5, regions=True, ramp=ramp) == pytest.approx(share * math.log(2))
