"""Points follow every geometric step exactly: compared with a dot that the same step moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from nnunet_semi.landmarks.augmentation import MirrorPoints, MovePoints, PointPipeline
from nnunet_semi.landmarks.decoding import decode
from nnunet_semi.landmarks.heatmaps import render
from nnunet_semi.landmarks.mirroring import Mirroring
from nnunet_semi.landmarks.points import resample, to_preprocessed, to_raw

SHAPES = {2: (61, 54), 3: (31, 36, 33)}
WIDTH = 3.0  # voxels; wide enough that linear interpolation of a dot moves its centre by less than a hundredth
TOLERANCE = 0.05  # voxels, what the trainer promises


def dot(point: torch.Tensor, shape: tuple[int, ...], width: float = WIDTH) -> torch.Tensor:
    return render(point[None, None], shape, [width] * len(shape))[0]


def centre(image: torch.Tensor, width: float = WIDTH) -> torch.Tensor:
    """Of the one dot in an image (1, *shape), however wide or narrow it has become."""
    return decode(image[None], [width] * (image.ndim - 1)).points[0, 0]


def spatial(patch: tuple[int, ...], **options: object) -> SpatialTransform:
    return SpatialTransform(patch, 0, False, padding_mode_image="zeros", **options)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"p_rotation": 1, "rotation": (-0.5, 0.5)},
        {"p_scaling": 1, "scaling": (0.7, 1.4), "p_synchronize_scaling_across_axes": 1},
        {"p_rotation": 1, "rotation": (-0.5, 0.5), "p_scaling": 1, "scaling": (0.8, 1.2)},
    ],
    ids=["crop", "rotation", "scaling", "both, scales differ"],
)
def test_points_follow_rotation_scaling_and_crop(dim: int, options: dict) -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    shape = SHAPES[dim]
    for patch in (tuple(n - 6 for n in shape), tuple(n + 5 for n in shape), tuple(n - k for k, n in enumerate(shape))):
        move = MovePoints(spatial(patch, **options))
        for _ in range(4):
            point = torch.tensor(shape) / 2 + torch.rand(dim) * 8 - 4
            moved = move(image=dot(point, shape), points=point[None])
            assert moved["image"].shape[1:] == patch
            assert (moved["points"][0] - centre(moved["image"])).norm() < TOLERANCE


def test_points_follow_the_two_dimensional_augmentation_of_volumes() -> None:
    np.random.seed(1)
    shape, patch = (6, 50, 46), (6, 40, 44)
    pipeline = ComposeTransforms(
        [
            Convert3DTo2DTransform(),
            spatial(patch[1:], p_rotation=1, rotation=(-0.5, 0.5), p_scaling=1, scaling=(0.8, 1.2)),
            Convert2DTo3DTransform(),
        ]
    )
    point = torch.tensor([2.3, 22.2, 25.1])
    image = dot(point, shape)
    moved = PointPipeline(pipeline, None)(image=image, points=point[None])
    assert moved["image"].shape[1:] == patch
    slice_centre = centre(moved["image"][:, 2])
    assert moved["points"][0, 0] == pytest.approx(2.3)
    assert (moved["points"][0, 1:] - slice_centre).norm() < TOLERANCE


@pytest.mark.parametrize(("dim", "axis"), [(2, 0), (2, 1), (3, 2)])
def test_points_follow_mirroring_and_change_sides(dim: int, axis: int) -> None:
    torch.manual_seed(3)
    shape = SHAPES[dim]
    points = torch.rand(3, dim) * 15 + 5
    image = torch.cat([dot(point, shape) for point in points])
    mirror = MirrorPoints(MirrorTransform((axis,)), Mirroring(axis, (1, 0, 2)))
    seen = set()
    for _ in range(12):
        moved = mirror(image=image, points=points)
        flipped = not torch.equal(moved["image"], image)
        seen.add(flipped)
        left, right, middle = (centre(channel[None]) for channel in moved["image"])
        expected = torch.stack([right, left, middle] if flipped else [left, right, middle])
        assert (moved["points"] - expected).abs().max() < 1e-3
    assert seen == {True, False}


def test_missing_points_stay_missing_and_outside_ones_follow_the_same_formula() -> None:
    angle, scale = 0.2, 1.25
    points = torch.tensor([[torch.nan, torch.nan], [-30.0, 20.0], [50.0, -7.0], [20.0, 20.0], [20.0, 20.0]])
    options = {"p_scaling": 1, "scaling": scale, "p_synchronize_scaling_across_axes": 1}
    move = MovePoints(spatial((40, 36), p_rotation=1, rotation=angle, **options))
    moved = move(image=torch.zeros(1, 44, 50), points=points)["points"]
    turn = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]).float()
    expected = (points - torch.tensor([21.5, 24.5])) @ turn.T / scale + torch.tensor([19.5, 17.5])
    torch.testing.assert_close(moved, expected, equal_nan=True, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dim", [2, 3])
def test_low_resolution_leaves_dots_where_they_are(dim: int) -> None:
    np.random.seed(4)
    torch.manual_seed(4)
    lower = SimulateLowResolutionTransform((0.5, 1), False, True, None)
    (in_place,) = PointPipeline(ComposeTransforms([lower]), None).transforms
    points = torch.tensor(SHAPES[dim]) / 2 + torch.rand(40, dim) * 6 - 3
    image = torch.cat([dot(point, SHAPES[dim]) for point in points])
    lowered = in_place(image=image.clone())["image"]
    shifts = torch.stack([centre(channel[None]) for channel in lowered]) - points
    assert not torch.equal(lowered, image)
    assert shifts.norm(dim=1).max() < TOLERANCE


def test_low_resolution_draws_what_nnunet_draws() -> None:
    lower = SimulateLowResolutionTransform((0.5, 1), False, True, (0,), [0, 1], 0.5)
    (at_random,) = PointPipeline(ComposeTransforms([RandomTransform(lower, 0.25)]), None).transforms
    assert at_random.apply_probability == 0.25
    assert vars(at_random.transform) == vars(lower)


def test_the_pipeline_applies_the_rest_and_drops_the_segmentation() -> None:
    torch.manual_seed(0)
    pipeline = ComposeTransforms([spatial((20, 20)), RandomTransform(GaussianNoiseTransform((1, 1)), 1.0)])
    points = PointPipeline(pipeline, None)
    assert not points.needs_segmentation
    sample = points(image=torch.zeros(1, 24, 24), segmentation=torch.zeros(1, 24, 24), points=torch.ones(2, 2))
    assert sample.keys() == {"image", "points"}
    assert sample["image"].std() > 0.5


def test_the_pipeline_keeps_the_segmentation_for_a_mask() -> None:
    points = PointPipeline(ComposeTransforms([spatial((20, 20)), MaskImageTransform([0], 0, 0)]), None)
    assert points.needs_segmentation
    segmentation = torch.zeros(1, 20, 20)
    segmentation[:, :10] = -1
    image = points(image=torch.ones(1, 20, 20), segmentation=segmentation, points=torch.ones(2, 2))["image"]
    assert torch.equal(image[0, :, 0], (torch.arange(20) >= 10).float())


class Transpose(BasicTransform):
    """Moves voxels by a formula of its own."""


@pytest.mark.parametrize(
    "transform",
    [
        Transpose(),
        RandomTransform(Transpose(), 0.5),
        spatial((20, 20), p_elastic_deform=0.2),
        MirrorTransform((0, 1)),
    ],
    ids=["unknown", "unknown, at random", "elastic", "mirroring without pairs"],
)
def test_what_points_cannot_follow_is_refused(transform: BasicTransform) -> None:
    with pytest.raises(NotImplementedError):
        PointPipeline(ComposeTransforms([transform]), None)


@pytest.mark.parametrize("new", [(30, 80), (122, 27), (61, 54), (75, 40)])
def test_the_half_pixel_rule_is_that_of_nnunets_resampling(new: tuple[int, int]) -> None:
    old = SHAPES[2]
    point = torch.tensor([[28.4, 22.7]])
    image = dot(point[0], old, 5.0)[:, None].numpy()
    resampled = resample_data_or_seg_to_shape(image, (1, *new), (99, 1, 1), (99, *np.divide(old, new)), is_seg=False)
    width = [5.0 * b / a for a, b in zip(old, new, strict=True)]
    found = decode(torch.from_numpy(resampled[:, 0].copy())[None].float(), width).points[0, 0].numpy()
    there = resample(point.numpy(), old, new)
    assert np.abs(there[0] - found).max() < 0.02
    assert np.abs(resample(there, new, old) - point.numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("old", "spacing", "new", "width", "tolerance"),
    [
        ((30, 36, 34), (1, 1, 1), (40, 30, 51), (3, 3, 3), 1e-3),
        ((30, 36, 34), (1, 1, 1), (22, 50, 25), (3, 3, 3), 1e-3),
        ((16, 40, 40), (5, 1, 1), (32, 30, 50), (1.5, 4, 4), 0.03),
        ((16, 40, 40), (5, 1, 1), (27, 30, 50), (1.5, 4, 4), 0.03),
        ((16, 40, 40), (5, 1, 1), (9, 30, 50), (1.5, 4, 4), 0.03),
    ],
    ids=["isotropic", "isotropic, coarser", "separate z, twice", "separate z, finer", "separate z, coarser"],
)
def test_the_half_pixel_rule_is_that_of_nnunets_resampling_of_volumes(
    old: tuple[int, ...], spacing: tuple[int, ...], new: tuple[int, ...], width: tuple[float, ...], tolerance: float
) -> None:
    """Separate z takes the nearest slice, after which only the centre of mass tells where a dot is."""
    point = torch.tensor(old) * 0.47 + 0.2
    image = render(point[None, None], old, width)[0].numpy()
    target = tuple(np.array(spacing) * old / new)
    resampled = resample_data_or_seg_to_shape(image, new, spacing, target, False, 3, 0, force_separate_z=None)[0]
    grid = np.stack(np.meshgrid(*map(np.arange, new), indexing="ij"), -1)
    found = (grid * np.array(resampled)[..., None]).sum((0, 1, 2)) / np.array(resampled).sum()
    np.testing.assert_allclose(resample(point.numpy(), old, new), found, atol=tolerance)


def properties(bbox: list[list[int]], before: tuple[int, ...]) -> dict:
    cropped = tuple(b - a for a, b in bbox)
    return {
        "shape_before_cropping": before,
        "bbox_used_for_cropping": bbox,
        "shape_after_cropping_and_before_resampling": cropped,
    }


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_there_and_back_is_the_identity(transpose: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    voxel = random.uniform(-5, 40, (7, 3))
    voxel[2] = np.nan
    case = properties([[2, 20], [1, 31], [5, 42]], (22, 33, 44))
    points = to_preprocessed(voxel, case, (30, 25, 50), transpose)
    assert np.isnan(points[2]).all()
    np.testing.assert_allclose(to_raw(points, case, (30, 25, 50), transpose, 3), voxel, atol=1e-9)


def test_a_2d_image_is_the_only_slice_of_a_volume() -> None:
    voxel = np.array([[3.0, 4.0]])
    case = properties([[0, 1], [1, 31], [2, 42]], (1, 33, 44))
    points = to_preprocessed(voxel, case, (1, 30, 40), (0, 1, 2))
    np.testing.assert_allclose(points, [[0, 2, 2]])
    np.testing.assert_allclose(to_raw(points[:, 1:], case, (1, 30, 40), (0, 1, 2), 2), voxel)
