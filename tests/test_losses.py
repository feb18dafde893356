"""The masked losses, the pseudo labels and the ramp, against their definitions written out here."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from scipy import ndimage
from torch.nn import functional

from nnunet_semi.consistency.losses import PseudoLabelLoss, downsample, mean_squared_difference
from nnunet_semi.consistency.pseudo_label import class_shares, largest_components, probabilities, pseudo_label
from nnunet_semi.consistency.ramp import sigmoid_rampup

SIZE = (2, 3, 8, 12)


def random_logits(seed: int, size: tuple[int, ...] = SIZE) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def random_label(seed: int, classes: int = 3, size: tuple[int, ...] = (2, 1, 8, 12)) -> torch.Tensor:
    return torch.randint(0, classes, size, generator=torch.Generator().manual_seed(seed))


def reference_loss(logits: torch.Tensor, label: torch.Tensor, mask: torch.Tensor) -> float:
    """Cross entropy over the voxels that count and 1 - mean foreground Dice of samples that have any, in loops."""
    probability = logits.double().softmax(1)
    entropies, dices = [], []
    for sample in range(len(logits)):
        counted = mask[sample, 0]
        if not counted.any():
            continue
        for voxel in counted.nonzero():
            y, x = voxel.tolist()
            entropies.append(-math.log(probability[sample, label[sample, 0, y, x], y, x]))
        for foreground in range(1, logits.shape[1]):
            p = probability[sample, foreground][counted]
            g = (label[sample, 0][counted] == foreground).double()
            dices.append((2 * (p * g).sum() + 1e-5) / (p.sum() + g.sum() + 1e-5))
    return sum(entropies) / len(entropies) + 1 - float(sum(dices)) / len(dices)


@pytest.mark.parametrize("learned", [(0, 1), (1,)], ids=["both samples", "one sample"])
def test_masked_loss_equals_a_plain_reference(learned):
    logits, label = random_logits(0), random_label(1)
    mask = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(2)) < 0.4
    mask &= torch.tensor([sample in learned for sample in range(2)]).view(2, 1, 1, 1)
    loss = PseudoLabelLoss()(logits, label, mask)
    assert loss.item() == pytest.approx(reference_loss(logits, label, mask), abs=1e-5)  # float32 against float64


def test_cross_entropy_over_all_voxels_is_the_sum_of_those_that_count():
    logits, label = random_logits(0), random_label(1)
    mask = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(2)) < 0.1
    expected = 0.0
    for sample, _, y, x in mask.nonzero().tolist():
        expected -= logits[sample, :, y, x].log_softmax(0)[label[sample, 0, y, x]].item() / (2 * 8 * 12)
    found = PseudoLabelLoss(weight_dice=0, ce_over_all=True)(logits, label, mask)
    assert found.item() == pytest.approx(expected, abs=1e-6)
    none = PseudoLabelLoss(weight_dice=0, ce_over_all=True)(logits, label, torch.zeros_like(mask))
    assert none.item() == 0


@pytest.mark.parametrize("batch_dice", [False, True])
def test_unmasked_loss_equals_nnunets_own_plus_one(batch_dice):
    logits, label = random_logits(0), random_label(1)
    own = DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    loss = PseudoLabelLoss(batch_dice=batch_dice)(logits, label)
    torch.testing.assert_close(loss, own(logits, label) + 1)


def test_regions_equal_nnunets_own_plus_one():
    logits = random_logits(0)
    label = random_logits(1) > 0
    own = DC_and_BCE_loss(
        {}, {"batch_dice": False, "do_bg": True, "smooth": 1e-5, "ddp": False}, dice_class=MemoryEfficientSoftDiceLoss
    )
    torch.testing.assert_close(PseudoLabelLoss(regions=True)(logits, label), own(logits, label) + 1)


def test_masked_regions_ignore_what_lies_outside_the_mask():
    logits, label = random_logits(0), random_logits(1) > 0
    mask = random_logits(2) > 0
    loss = PseudoLabelLoss(regions=True)
    elsewhere = torch.where(mask, logits, -7 * logits)
    torch.testing.assert_close(loss(logits, label, mask), loss(elsewhere, torch.where(mask, label, ~label), mask))


@pytest.mark.parametrize("regions", [False, True])
def test_fully_masked_batch_gives_zero_and_no_gradient(regions):
    logits = random_logits(0).requires_grad_()
    label = random_logits(1) > 0 if regions else random_label(1)
    loss = PseudoLabelLoss(regions=regions)(logits, label, torch.zeros(2, 1, 8, 12, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)  # (0 + smooth) / (0 + smooth) in float32
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("batch_dice", [False, True])
def test_smoothing_adds_a_share_of_the_voxels_to_both_sides_of_the_quotient(batch_dice):
    logits, label = random_logits(0), random_label(1)
    p, y = logits.softmax(1)[:, 1:].flatten(2), functional.one_hot(label[:, 0], 3).movedim(-1, 1)[:, 1:].flatten(2)
    both, each = (p * y).sum(2), (p + y).sum(2)
    if batch_dice:
        both, each = both.sum(0), each.sum(0)
    added = 0.05 * 8 * 12 * (len(logits) if batch_dice else 1)
    expected = 1 - ((2 * both + added) / (each + added)).mean()
    loss = PseudoLabelLoss(weight_ce=0, dice_smoothing=0.05, batch_dice=batch_dice)
    torch.testing.assert_close(loss(logits, label), expected)


def test_with_smoothing_a_stray_voxel_costs_less_than_a_missed_organ():
    empty = torch.zeros(1, 1, 8, 12, dtype=torch.int64)
    stray, organ = empty.clone(), empty.clone()
    stray[..., 0, 0], organ[..., 2:6, 3:9] = 1, 1
    sure_of_nothing = torch.stack([torch.full((1, 8, 12), 9.0), torch.full((1, 8, 12), -9.0)], 1)
    plain, smoothed = PseudoLabelLoss(weight_ce=0), PseudoLabelLoss(weight_ce=0, dice_smoothing=0.05)
    assert plain(sure_of_nothing, stray) == pytest.approx(plain(sure_of_nothing, organ).item(), abs=1e-3)
    assert smoothed(sure_of_nothing, stray) < 0.25 * smoothed(sure_of_nothing, organ)


def test_only_with_background_the_dice_unlearns_a_blob_that_the_pseudo_label_does_not_hold():
    label = torch.zeros(1, 1, 8, 12, dtype=torch.int64)
    slopes = []
    for background in (False, True):
        logits = torch.zeros(1, 2, 8, 12)
        logits[:, 1] = -9
        logits[:, 1, 2:6, 3:9] = 2  # the blob
        PseudoLabelLoss(weight_ce=0, dice_background=background)(logits.requires_grad_(), label).backward()
        slopes.append(logits.grad[0, 1, 2:6, 3:9].mean().item())
    assert abs(slopes[0]) < 1e-6
    assert slopes[1] > 1e-4  # up in the loss, so down in the logits


def test_deep_supervision_weighs_resolutions_as_nnunet_does():
    label = random_label(1)
    outputs = [random_logits(2), random_logits(3, (2, 3, 4, 6)), random_logits(4, (2, 3, 2, 3))]
    targets = [label, downsample(label, (4, 6)), downsample(label, (2, 3))]
    weights = (2 / 3, 1 / 3, 0.0)
    plain = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    expected = DeepSupervisionWrapper(plain, weights)(outputs, targets) + 1
    torch.testing.assert_close(PseudoLabelLoss(resolution_weights=weights)(outputs, label), expected)


def test_downsampling_equals_nnunets_targets():
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

    label = random_label(5, size=(2, 1, 9, 14))
    scales = [[1, 1], [0.5, 0.5], [0.25, 0.5]]
    for sample in label:
        for target in DownsampleSegForDSTransform(scales)(segmentation=sample)["segmentation"]:
            assert torch.equal(downsample(sample[None], target.shape[1:])[0], target)


def test_pseudo_label_is_argmax_with_the_softmax_maximum():
    logits = random_logits(6)
    label, confidence = pseudo_label(logits)
    probability = logits.softmax(1)
    assert torch.equal(label, probability.argmax(1, keepdim=True))
    torch.testing.assert_close(confidence, probability.amax(1, keepdim=True))


def test_pseudo_label_of_regions_is_each_probability_above_one_half():
    logits = random_logits(6)
    label, confidence = pseudo_label(logits, regions=True)
    probability = logits.sigmoid()
    assert torch.equal(label, probability > 0.5)
    torch.testing.assert_close(confidence, torch.maximum(probability, 1 - probability))


def test_pseudo_label_lets_no_gradient_through():
    logits = random_logits(6).requires_grad_()
    _, confidence = pseudo_label(logits)
    assert not confidence.requires_grad


def test_class_shares_count_voxels():
    label = torch.tensor([0, 0, 0, 2]).view(1, 1, 2, 2)
    assert class_shares(label, 3).tolist() == [0.75, 0.0, 0.25]
    assert class_shares(torch.cat([label == 0, label == 2], 1), 2).tolist() == [0.75, 0.25]


def test_class_shares_of_voxels_that_count():
    label = torch.tensor([0, 0, 0, 2]).view(1, 1, 2, 2)
    mask = torch.tensor([True, False, False, True]).view(1, 1, 2, 2)
    assert class_shares(label, 3, mask).tolist() == [0.25, 0.0, 0.25]
    regions = torch.cat([label == 0, label == 2], 1)
    assert class_shares(regions, 2, mask.expand_as(regions)).tolist() == [0.25, 0.25]


def test_largest_component_of_each_class_stays():
    rows = ["110020", "110020", "000000", "200010"]
    label = torch.tensor([[int(c) for c in row] for row in rows])[None, None].repeat(2, 1, 1, 1)
    label[1] = 0
    expected = [[int(c) for c in row] for row in ("110020", "110020", "000000", "000000")]
    kept = largest_components(label, 3)
    assert kept[0, 0].tolist() == expected
    assert torch.equal(kept[1], label[1])
    regions = largest_components(torch.cat([label == 1, label == 2], 1), 2)
    assert torch.equal(regions, torch.cat([kept == 1, kept == 2], 1))


@pytest.mark.parametrize("classes", [2, 5])
def test_largest_components_are_those_of_the_definition(classes):
    """In 3D, with touching classes, classes that are absent and components that lie in each other's boxes."""
    generator = torch.Generator().manual_seed(classes)
    label = torch.randint(0, classes, (2, 1, 9, 10, 11), generator=generator) * (
        torch.rand(2, 1, 9, 10, 11, generator=generator) < 0.15
    )
    label[1][label[1] == 1] = 0
    expected = torch.zeros_like(label)
    for sample, index in itertools.product(range(2), range(1, classes)):
        components, count = ndimage.label((label[sample, 0] == index).numpy(), np.ones((3, 3, 3)))
        if count:
            largest = max(range(1, count + 1), key=lambda component: (components == component).sum())
            expected[sample, 0][torch.from_numpy(components == largest)] = index
    assert torch.equal(largest_components(label, classes), expected)
    regions = torch.cat([label == index for index in range(1, classes)], 1)
    wanted = torch.cat([expected == index for index in range(1, classes)], 1)
    assert torch.equal(largest_components(regions, classes - 1), wanted)


@pytest.mark.parametrize("dimension", [2, 3])
def test_voxels_that_share_a_corner_are_one_component(dimension):
    diagonal = torch.eye(4, dtype=torch.int64)
    label = diagonal[None, None] if dimension == 2 else torch.diag_embed(diagonal)[None, None]
    assert label.sum() == 4
    assert torch.equal(largest_components(label, 2), label)


@pytest.mark.parametrize("regions", [False, True])
def test_mean_squared_difference_equals_a_plain_reference(regions):
    first, second = probabilities(random_logits(0), regions), probabilities(random_logits(1), regions)
    assert first.amax() <= 1
    assert torch.allclose(first.sum(1), torch.ones(())) != regions
    expected = sum((a - b) ** 2 for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    assert mean_squared_difference(first, second).item() == pytest.approx(expected / first.numel(), rel=1e-5)
    mask = random_logits(2)[:, :1] > 0
    counted = [(first[i, :, y, x] - second[i, :, y, x]).pow(2).mean().item() for i, _, y, x in mask.nonzero().tolist()]
    found = mean_squared_difference(first, second, mask)
    assert found.item() == pytest.approx(sum(counted) / len(counted), rel=1e-5)
    torch.testing.assert_close(found, mean_squared_difference(first, second, mask.expand_as(first)))


def test_mean_squared_difference_where_nothing_counts_is_zero_and_the_goal_gets_no_gradient():
    logits, goal = random_logits(0).requires_grad_(), random_logits(1).requires_grad_()
    loss = mean_squared_difference(probabilities(logits), probabilities(goal), torch.zeros(2, 1, 8, 12) > 0)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))
    assert goal.grad is None


@pytest.mark.parametrize(
    ("progress", "weight"), [(0, 6.738e-4), (0.25, 0.0060065), (0.5, 0.0286505), (0.75, 0.0731616), (1, 0.1)]
)
def test_ramp_has_the_published_values(progress, weight):
    expected = weight if progress else 0.1 * 6.738e-3
    assert 0.1 * sigmoid_rampup(progress) == pytest.approx(expected, rel=1e-3)


def test_ramp_is_full_after_its_length_and_at_once_without_one():
    assert sigmoid_rampup(0.3, length=0.25) == 1
    assert sigmoid_rampup(0.0, length=0) == 1
    assert sigmoid_rampup(0.125, length=0.25) == pytest.approx(math.exp(-5 / 4))
