"""Heatmaps and back: rendering against the plain formula, decoding against known points, losses against numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from nnunet_semi.landmarks import losses
from nnunet_semi.landmarks.accuracy import mean_error, patch_errors, success_rate
from nnunet_semi.landmarks.decoding import decode, decode_outputs
from nnunet_semi.landmarks.heatmaps import BLOB_LEVEL, at_resolution, heatmap_logits, render, voxel_sigma

SHAPES = {2: (40, 52), 3: (18, 26, 22)}
LOSSES = [losses.dice_bce_where, losses.dice_bce, losses.l1, losses.focal]


def random_points(dim: int, count: int, seed: int = 0, margin: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor(SHAPES[dim]) - 1 - 2 * margin
    return margin + torch.rand(1, count, dim, generator=generator) * size


@pytest.mark.parametrize("dim", [2, 3])
def test_rendering_is_the_formula(dim: int) -> None:
    points, sigma = random_points(dim, 5), [2.0, 3.0, 1.5][:dim]
    points[0, 3] = -20.0
    points[0, 4] = torch.nan
    found = render(points, SHAPES[dim], sigma)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPES[dim]), indexing="ij"), -1)
    for heatmap, point in zip(found[0, :4].numpy(), points[0].numpy(), strict=False):
        expected = np.exp(-0.5 * (((grid - point) / sigma) ** 2).sum(-1))
        np.testing.assert_allclose(heatmap, expected, atol=1e-6)
    assert found[0, 3].max() < 1e-6
    assert not found[0, 4].any()


def test_coinciding_landmarks_have_the_same_heatmap() -> None:
    heatmaps = render(torch.full((1, 2, 2), 10.3), (20, 20), (2, 2))
    assert torch.equal(heatmaps[0, 0], heatmaps[0, 1])


def test_half_precision_points_give_float_heatmaps() -> None:
    assert render(torch.zeros(1, 1, 2, dtype=torch.half), (8, 8), (1, 1)).dtype == torch.float32


def test_sigma_is_in_mm_and_never_below_a_voxel() -> None:
    assert voxel_sigma(2.0, (0.5, 1.0, 5.0)) == (4.0, 2.0, 1.0)


def test_coarser_grids_follow_the_half_pixel_rule() -> None:
    """A block of 2 × 2 voxels lies where the mean of its centres lies."""
    assert torch.equal(at_resolution(torch.tensor([[[0.5, 2.5]]]), (0.5, 0.5)), torch.tensor([[[0.0, 1.0]]]))


def test_argmax_gives_a_blob_where_the_heatmap_is_above_the_level() -> None:
    outputs = torch.randn(2, 4, 9, 9)
    above = (heatmap_logits(outputs).sigmoid() > BLOB_LEVEL).any(1)
    assert torch.equal(outputs.argmax(1) > 0, above)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("sigma", [2.0, 3.0])
def test_decoding_is_exact_on_gaussians_also_at_borders(dim: int, sigma: float) -> None:
    points = random_points(dim, 40)  # those at the borders among them
    found = decode(render(points, SHAPES[dim], [sigma] * dim), [sigma] * dim)
    assert (found.points - points).norm(dim=-1).max() < 0.01
    np.testing.assert_allclose(found.width, 1, atol=0.01)
    assert ((found.peak > 0.8) & (found.peak <= 1)).all()


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.6])
@pytest.mark.parametrize("height", [0.2, 1.0])
def test_decoding_does_not_need_the_height_and_tells_the_width(factor: float, height: float) -> None:
    points = random_points(2, 30, margin=3)
    heatmaps = height * render(points, SHAPES[2], [2.5 * factor, 3.5 * factor])
    found = decode(heatmaps, [2.5, 3.5])
    assert (found.points - points).norm(dim=-1).max() < 0.05
    np.testing.assert_allclose(found.width, factor, rtol=0.03)


@pytest.mark.parametrize(("noise", "mean", "largest"), [(0.02, 0.03, 0.1), (0.1, 0.15, 0.5)])
def test_decoding_averages_noise(noise: float, mean: float, largest: float) -> None:
    """The bounds lie 30 % above what was measured; the highest voxel alone is off by .6 and 1.2 on average."""
    points = random_points(2, 200, margin=8)
    heatmaps = render(points, SHAPES[2], (4, 4))
    heatmaps += noise * torch.randn(heatmaps.shape, generator=torch.Generator().manual_seed(1))
    errors = (decode(heatmaps, (4, 4)).points - points).norm(dim=-1)
    assert errors.mean() < mean and errors.max() < largest


def test_flat_heatmaps_give_finite_points_inside() -> None:
    for value in (0.0, 0.5, 1.0):
        found = decode(torch.full((1, 1, 12, 14), value), (2, 2))
        assert all(values.isfinite().all() for values in found)
        assert ((found.points >= -4) & (found.points <= 18)).all()
        assert found.peak.item() == value


def test_decoding_outputs_a_few_at_a_time_changes_nothing() -> None:
    points = random_points(2, 5, margin=3)
    outputs = torch.cat([torch.zeros(1, 1, *SHAPES[2]), torch.logit(render(points, SHAPES[2], (2, 2)), 1e-6)], 1)[0]
    one, all_at_once = decode_outputs(outputs, (2, 2), 2), decode_outputs(outputs, (2, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, all_at_once, strict=True))
    assert (one.points - points[0]).norm(dim=-1).max() < 0.5  # the level shifts the logits, which changes the shape


@pytest.mark.parametrize("loss", LOSSES)
def test_a_better_heatmap_costs_less(loss: losses.MapLoss) -> None:
    target = render(torch.tensor([[[12.0, 10.0]]]), (24, 24), (2, 2)).flatten(2)[0]
    right = torch.logit(target, 1e-4)
    moved = torch.logit(render(torch.tensor([[[12.0, 14.0]]]), (24, 24), (2, 2)).flatten(2)[0], 1e-4)
    nothing = torch.full_like(right, -8.0)
    costs = [loss(logits, target).item() for logits in (right, moved)]
    assert costs[0] < costs[1] and loss(right, target) < loss(nothing, target)
    assert np.isfinite([*costs, loss(nothing, torch.zeros_like(target)).item()]).all()


def test_dice_and_cross_entropy_equal_a_plain_reference() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(3, 50), torch.rand(3, 50)
    maps = logits.sigmoid()
    dice = torch.tensor([2 * (p @ t) / (p @ p + t @ t) for p, t in zip(maps, target, strict=True)])
    expected = 1 - dice + binary_cross_entropy(maps, target, reduction="none").mean(1)
    torch.testing.assert_close(
        losses.dice_bce(logits, target), expected, rtol=1e-4, atol=1e-4
    )  # its 1e-3 against 0 / 0


def test_where_equals_a_plain_reference() -> None:
    """A peak, and what reaches into the map of one outside."""
    target = torch.tensor([[0.2, 1.0, 0.4], [0.1, 0.0, 0.0]])
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -3.0]])
    expected = []
    for z, t in zip(logits.tolist(), target.tolist(), strict=True):
        total = math.log(sum(map(math.exp, z)))
        expected.append(sum(b * (total - a) for a, b in zip(z, t, strict=True)) / max(1, sum(t)))
    torch.testing.assert_close(losses.where(logits, target), torch.tensor(expected))
    torch.testing.assert_close(
        losses.dice_bce_where(logits, target), losses.dice_bce(logits, target) + 0.2 * torch.tensor(expected)
    )


def test_a_map_that_peaks_in_a_wrong_place_is_pulled_to_the_right_one() -> None:
    """Dice and BCE alone have next to no force there, at the right place and at the wrong one."""
    target, wrong = (render(torch.tensor([[[12.0, x]]]), (128, 128), (2, 2)).flatten(2)[0] for x in (20.0, 90.0))
    forces = []
    for loss in (losses.dice_bce, losses.dice_bce_where):
        logits = torch.logit(wrong, 1e-4).requires_grad_()
        loss(logits, target).sum().backward()
        assert logits.grad is not None
        forces.append([-(logits.grad * target).sum().item(), (logits.grad * wrong).sum().item()])
    assert max(forces[0]) < 0.001 and min(forces[1]) > 0.05


def test_focal_loss_equals_a_plain_reference() -> None:
    """A peak of two voxels, one whose point lies between voxels so that none is above .9, and none at all."""
    target = torch.tensor([[0.95, 1.0, 0.4, 0.0], [0.3, 0.7, 0.6, 0.1], [0.2, 0.1, 0.0, 0.0]])
    peaks = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    logits = 2 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    expected = []
    for p, t, peak in zip(logits.sigmoid().tolist(), target.tolist(), peaks.tolist(), strict=True):
        terms = [
            (1 - a) ** 2 * math.log2(a) if is_peak else (1 - b) ** 4 * a**2 * math.log2(1 - a)
            for a, b, is_peak in zip(p, t, peak, strict=True)
        ]
        expected.append(-sum(terms) / max(1, sum(peak)))
    torch.testing.assert_close(losses.focal(logits, target), torch.tensor(expected))


def test_missing_landmarks_teach_nothing() -> None:
    torch.manual_seed(0)
    loss = losses.HeatmapLoss(losses.dice_bce, (2.0, 2.0))
    outputs = torch.randn(2, 4, 16, 16, requires_grad=True)
    points = torch.rand(2, 3, 2) * 15
    points[0, 1] = torch.nan
    points[1, 2] = torch.nan
    loss(outputs, points).backward()
    assert outputs.grad is not None
    assert not outputs.grad[0, 2].any() and not outputs.grad[1, 3].any()
    assert outputs.grad[0, 1].any() and outputs.grad[0, 3].any()


def test_unsure_landmarks_count_less() -> None:
    torch.manual_seed(0)
    loss = losses.HeatmapLoss(losses.dice_bce, (2.0, 2.0))
    outputs, points = torch.randn(1, 3, 16, 16), torch.rand(1, 2, 2) * 15
    first, second = (loss(outputs, points, torch.tensor([weights])) for weights in ([1.0, 0.0], [0.0, 1.0]))
    torch.testing.assert_close(loss(outputs, points), first + second)
    torch.testing.assert_close(loss(outputs, points, torch.tensor([[0.5, 0.25]])), 0.5 * first + 0.25 * second)


def test_a_batch_of_missing_landmarks_gives_zero() -> None:
    outputs = torch.randn(1, 3, 8, 8, requires_grad=True)
    value = losses.HeatmapLoss(losses.dice_bce, (2.0, 2.0))(outputs, torch.full((1, 2, 2), torch.nan))
    value.backward()
    assert value.item() == 0 and outputs.grad is not None and not outputs.grad.any()


def test_landmarks_outside_are_learned_as_absent() -> None:
    loss = losses.HeatmapLoss(losses.dice_bce, (2.0, 2.0))
    outside = torch.tensor([[[-30.0, 4.0]]])
    quiet, loud = (torch.stack([torch.zeros(8, 8), torch.full((8, 8), value)])[None] for value in (-9.0, 9.0))
    assert loss(quiet, outside) < 0.01 < 1 < loss(loud, outside)


def test_deep_supervision_weighs_the_resolutions() -> None:
    torch.manual_seed(0)
    points = torch.rand(1, 2, 2) * 15
    outputs = [torch.randn(1, 3, 16, 16), torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4)]
    single = losses.HeatmapLoss(losses.l1, (2.0, 2.0))
    coarse = losses.HeatmapLoss(losses.l1, (1.0, 1.0))(outputs[1], at_resolution(points, (0.5, 0.5)))
    both = losses.HeatmapLoss(losses.l1, (2.0, 2.0), (0.75, 0.25, 0.0))(outputs, points)
    torch.testing.assert_close(both, 0.75 * single(outputs[0], points) + 0.25 * coarse)


def test_errors_are_in_mm_and_only_where_there_is_a_landmark() -> None:
    points = torch.tensor([[[5.0, 6.0], [torch.nan, torch.nan], [3.0, 30.0]]])
    there = torch.tensor([[[5.0, 8.0], [9.0, 9.0], [3.0, 9.0]]])
    outputs = torch.cat([torch.zeros(1, 1, 20, 20), torch.logit(render(there, (20, 20), (2, 2)), 1e-6)], 1)
    errors = patch_errors(outputs, points, (2, 2), (1.0, 0.5)).numpy()
    assert errors[0, 0] == pytest.approx(1.0, abs=0.05)
    assert np.isnan(errors[0, 1:]).all()
    assert mean_error(errors) == errors[0, 0] and np.isnan(mean_error(errors[:, 1:]))
    assert (success_rate(errors, 2.0), success_rate(errors, 0.5)) == (1, 0)


def test_an_overflow_counts_as_far_off_and_not_as_missing() -> None:
    """In half precision an output can be infinite; landmarks that are missing stay so."""
    points = random_points(2, 3, margin=3)
    points[0, 2] = torch.nan
    outputs = torch.full((1, 4, *SHAPES[2]), torch.inf)
    errors = patch_errors(outputs, points, (2, 2), (1.0, 0.5))
    diagonal = (SHAPES[2][0] ** 2 + (SHAPES[2][1] / 2) ** 2) ** 0.5
    torch.testing.assert_close(errors, torch.tensor([[diagonal, diagonal, torch.nan]]), equal_nan=True)
