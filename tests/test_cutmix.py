"""CutMix: statistics of 10 000 boxes, and what is pasted where."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_semi.perturbation.cutmix import CutMix, box_mask, cutmix_boxes, draw_cutmix, fixed_boxes, paste

DRAWS = 10_000
SHAPES = pytest.mark.parametrize(
    "spatial_shape",
    [(256, 256), (320, 192), (128, 128, 128), (16, 320, 256)],
    ids=["square", "rectangle", "cube", "flat"],
)
SMALL = pytest.mark.parametrize("spatial_shape", [(20, 30), (6, 12, 10)], ids=["2d", "3d"])


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def sides_of(corners: torch.Tensor) -> np.ndarray:
    return (corners[..., 1] - corners[..., 0]).double().numpy()


def unimatch_boxes(count: int, size: int) -> np.ndarray:
    """(count, 4): height, width, y, x by UniMatch's rule, one at a time."""
    rng = np.random.default_rng(0)
    boxes = []
    for _ in range(count):
        area = rng.uniform(0.02, 0.4) * size * size
        while True:
            ratio = rng.uniform(0.3, 1 / 0.3)
            height, width = int(np.sqrt(area * ratio)), int(np.sqrt(area / ratio))
            y, x = rng.integers(0, size, 2)
            if y + height <= size and x + width <= size:
                break
        boxes.append((height, width, y, x))
    return np.array(boxes, dtype=float)


@SHAPES
def test_boxes_lie_inside(spatial_shape):
    corners = cutmix_boxes(DRAWS, spatial_shape, p=1.0)
    assert corners.shape == (DRAWS, len(spatial_shape), 2) and corners.dtype == torch.int64
    assert (corners[..., 0] >= 0).all()
    assert (corners[..., 1] <= torch.tensor(spatial_shape)).all()
    assert (corners[..., 0] < corners[..., 1]).all()


@SHAPES
def test_probability_of_a_box_is_p_per_sample(spatial_shape):
    has_box = (cutmix_boxes(DRAWS, spatial_shape)[..., 1] > 0).all(dim=1).double()
    # Standard error of a share of one half over 10 000 draws: .005; 4 of them.
    assert abs(has_box.mean() - 0.5) < 0.02
    # Neighbours are independent: both have a box in one quarter of the pairs (standard error .0043 to .006).
    assert abs((has_box[1:] * has_box[:-1]).mean() - 0.25) < 0.024


@SHAPES
def test_share_of_the_image_is_uniform_in_the_published_range(spatial_shape):
    shares = sides_of(cutmix_boxes(DRAWS, spatial_shape, p=1.0)).prod(axis=1) / np.prod(spatial_shape)
    # Rounding moves a side by at most half a voxel: 10 % of the side of 5 voxels that a flat patch can have.
    thinnest = 0.02 ** (1 / len(spatial_shape)) * 0.45 * np.array(spatial_shape)
    slack = np.prod(1 + 0.5 / thinnest) - 1
    assert shares.min() > 0.02 * (1 - slack) and shares.max() < 0.4 * (1 + slack)
    # Standard error of the mean of U(.02, .4) over 10 000: .0011; 4 of them. The same for each decile.
    assert abs(shares.mean() - 0.21) < 0.0044
    deciles = np.quantile(shares, np.linspace(0.1, 0.9, 9))
    np.testing.assert_allclose(deciles, np.linspace(0.058, 0.362, 9), atol=0.008)


def test_square_boxes_have_unimatchs_distribution_of_sides_and_places():
    corners = cutmix_boxes(DRAWS, (512, 512), p=1.0)
    boxes = np.concatenate([sides_of(corners), corners[..., 0].double().numpy()], axis=1)
    reference = unimatch_boxes(DRAWS, 512)
    for column in range(4):
        # UniMatch cuts fractions of pixels off, here they are rounded: at most 1/30 of a standard deviation.
        pvalue = scipy.stats.ks_2samp(boxes[:, column], reference[:, column]).pvalue
        assert pvalue > 1e-3, "one wrong alarm in 1000 seeds; the seed is fixed"
    aspects = boxes[:, 0] / boxes[:, 1]
    assert scipy.stats.ks_2samp(aspects, reference[:, 0] / reference[:, 1]).pvalue > 1e-3
    # The shortest side has 40 pixels, so that rounding moves an aspect by at most 2 %.
    assert aspects.min() > 0.3 * 0.98 and aspects.max() < 1.02 / 0.3


def test_rectangles_stretch_the_square_box():
    stretched = sides_of(cutmix_boxes(DRAWS, (800, 400), p=1.0)) / [800, 400]
    torch.manual_seed(1)
    square = sides_of(cutmix_boxes(DRAWS, (800, 800), p=1.0)) / 800
    for axis in range(2):
        assert scipy.stats.ks_2samp(stretched[:, axis], square[:, axis]).pvalue > 1e-3


@pytest.mark.parametrize("spatial_shape", [(256, 256, 256), (100, 320, 256)])
def test_3d_boxes_favour_no_axis_and_keep_every_pair_of_sides_within_the_aspect(spatial_shape):
    relative = sides_of(cutmix_boxes(DRAWS, spatial_shape, p=1.0)) / spatial_shape
    for first, second in itertools.permutations(range(3), 2):
        # Sides are at least .02^(1/3) * .3^(2/3) * 100 = 12 voxels: rounding moves their ratio by at most 8 %.
        assert (relative[:, first] / relative[:, second]).max() < 1.08 / 0.3
    log_ratio = np.log(relative[:, 0] / relative[:, 1])
    # Of a triangular distribution over ±log(1/.3), narrower as long boxes rarely fit: deviation below .49, not near 0.
    assert 0.25 < log_ratio.std() < 0.5
    means = relative.mean(axis=0)
    # Standard error of the mean of a side: .17 / √10 000 = .0017; 4 of them, for a difference of two.
    assert np.ptp(means) < 0.01


@SMALL
def test_mask_is_true_exactly_inside_the_corners(spatial_shape):
    corners = cutmix_boxes(6, spatial_shape, p=0.7)
    mask = box_mask(corners, spatial_shape, "cpu")
    expected = np.zeros((6, 1, *spatial_shape), dtype=bool)
    for i, box in enumerate(corners.tolist()):
        expected[(i, 0, *(slice(start, stop) for start, stop in box))] = True
    assert mask.dtype == torch.bool
    assert expected.any() and not expected.all()
    np.testing.assert_array_equal(mask.numpy(), expected)


@SMALL
def test_pasted_voxels_carry_image_label_and_confidence_of_another_sample(spatial_shape):
    sample = torch.arange(5.0).view(5, *[1] * len(spatial_shape)).expand(5, *spatial_shape)
    images, labels, confidence = sample[:, None].repeat(1, 2, *[1] * len(spatial_shape)), sample.long(), sample / 10
    mix = draw_cutmix(images, p=1.0)
    mixed_images, mixed_labels, mixed_confidence = mix(images), mix(labels), mix(confidence)
    assert mixed_labels.dtype == torch.int64
    for i in range(5):
        inside = mix.mask[i, 0]
        source = (i - 1) % 5
        assert inside.any() and not inside.all()
        for channel in mixed_images[i]:
            assert (channel[inside] == source).all() and (channel[~inside] == i).all()
        assert (mixed_labels[i][inside] == source).all() and (mixed_labels[i][~inside] == i).all()
        assert torch.equal(mixed_confidence[i], mixed_labels[i] / 10)


def test_voxels_keep_their_place_when_pasted():
    places = torch.arange(2 * 400.0).view(2, 1, 20, 20)
    mixed = draw_cutmix(places, p=1.0)(places)
    assert torch.equal(mixed % 400, places % 400)
    assert not torch.equal(mixed, places)


def test_boolean_regions_and_channels_share_one_box():
    regions = torch.rand(4, 3, 16, 16) > 0.5
    mix = draw_cutmix(regions, p=1.0)
    torch.testing.assert_close(mix(regions), torch.where(mix.mask, regions.roll(1, 0), regions))


@SMALL
def test_probability_zero_is_identity(spatial_shape):
    images = torch.rand(4, 1, *spatial_shape)
    assert torch.equal(draw_cutmix(images, p=0.0)(images), images)


def test_a_batch_of_one_has_nobody_to_paste_from():
    images = torch.rand(1, 1, 16, 16)
    mix = draw_cutmix(images, p=1.0)
    assert not mix.mask.any()
    assert torch.equal(mix(images), images)


def test_an_empty_batch_gives_no_boxes():
    assert cutmix_boxes(0, (16, 16)).shape == (0, 2, 2)
    assert draw_cutmix(torch.rand(0, 1, 16, 16)).mask.shape == (0, 1, 16, 16)


@SMALL
def test_seed_fixes_the_boxes(spatial_shape):
    torch.manual_seed(1)
    first, second = cutmix_boxes(50, spatial_shape), cutmix_boxes(50, spatial_shape)
    torch.manual_seed(1)
    assert torch.equal(cutmix_boxes(50, spatial_shape), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("spatial_shape", [(1, 1), (2, 3), (1, 64, 64), (2, 2, 2)])
def test_boxes_exist_in_the_smallest_images(spatial_shape):
    corners = cutmix_boxes(200, spatial_shape, p=1.0)
    assert ((corners[..., 1] - corners[..., 0]) >= 1).all()
    assert (corners[..., 1] <= torch.tensor(spatial_shape)).all()


def test_gradient_reaches_both_samples_through_the_mix():
    images = torch.rand(2, 1, 16, 16, requires_grad=True)
    mix = draw_cutmix(images, p=1.0)
    mix(images)[0].sum().backward()
    assert torch.equal(images.grad[1], mix.mask[0].float()) and torch.equal(images.grad[0], (~mix.mask[0]).float())


def test_nothing_is_read_back_from_an_accelerator():
    """Fake tensors hold shapes but no values: whatever would wait for a GPU raises."""
    corners = cutmix_boxes(3, (16, 16))
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(3, 1, 16, 16, device="cuda")
        mixed = CutMix(box_mask(corners, (16, 16), images.device))(images)
        assert mixed.shape == images.shape and mixed.device.type == "cuda"


def test_tensors_that_do_not_fit_are_refused():
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    for wrong in [(2, 1, 4, 4), (3, 1, 8, 8), (2, 8), (2, 1, 8, 8, 8)]:
        with pytest.raises(ValueError, match="do not fit"):
            paste(mask, torch.zeros(wrong), torch.zeros(wrong))
    with pytest.raises(ValueError, match="do not fit"):
        paste(mask, torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spatial_shape": (8,)}, "spatial_shape"),
        ({"p": 1.1}, "p is 1.1"),
        ({"area": (0.5, 1.0)}, "area"),
        ({"aspect": (0.0, 1.0)}, "aspect"),
        ({"area": (0.4, 0.4), "aspect": (10.0, 10.0), "p": 1.0}, "no such box lies inside"),
    ],
)
def test_wrong_parameters_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        cutmix_boxes(**{"batch_size": 2, "spatial_shape": (32, 32), **wrong})


@SHAPES
def test_fixed_boxes_have_their_sides_and_lie_anywhere_inside(spatial_shape):
    corners = fixed_boxes(DRAWS, spatial_shape, side=2 / 3)
    sides = torch.tensor([int(size * 2 / 3) for size in spatial_shape])
    assert torch.equal(corners[..., 1] - corners[..., 0], sides.expand(DRAWS, -1))
    free = torch.tensor(spatial_shape) - sides
    assert torch.equal(corners[..., 0].amin(0), torch.zeros_like(free))
    assert torch.equal(corners[..., 0].amax(0), free)
    # uniform on 0 … free has a standard deviation of about free / √12; 4 of its mean's
    assert ((corners[..., 0].double().mean(0) - free / 2).abs() < 4 * (free + 1) / 12**0.5 / DRAWS**0.5).all()


@SMALL
def test_pasted_voxels_carry_label_and_confidence_of_their_source(spatial_shape):
    """An image whose label and confidence are functions of its intensity keeps them so under the mix."""
    images = torch.rand(5, 1, *spatial_shape)
    mix = draw_cutmix(images, p=1.0)
    mixed = mix(images)
    assert not torch.equal(mixed, images)
    assert torch.equal(mix((images * 7).long()), (mixed * 7).long())
    assert torch.equal(mix(1 - images / 3), 1 - mixed / 3)
