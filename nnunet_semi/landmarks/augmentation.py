"""Points through nnU-Net's augmentation: what a transform does to the image, it does to the points by its formula."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor
from torch.nn.functional import interpolate

from nnunet_semi.landmarks.mirroring import Mirroring
from nnunet_semi.pipelines import CASCADE, READS_SEGMENTATION, TARGET_ONLY

MOVES_NO_VOXEL = (ImageOnlyTransform, SegOnlyTransform, Convert2DTo3DTransform, Convert3DTo2DTransform)


class PointPipeline(BasicTransform):
    """nnU-Net's augmentation of {'image': (C, *spatial), 'segmentation': …, 'points': (L, dim)}.

    The segmentation is carried along only where a transform masks the image with it, and comes back in no case.

    Args:
        pipeline: what nnUNetTrainer's `get_training_transforms` or `get_validation_transforms` returned.
        mirroring: which landmarks change places when the image is mirrored; None if it never is.

    Raises:
        NotImplementedError: a transform moves voxels by a formula that is not known here.
    """

    def __init__(self, pipeline: ComposeTransforms, mirroring: Mirroring | None) -> None:
        super().__init__()
        kept = [t for t in pipeline.transforms if not isinstance(_bare(t), (*CASCADE, *TARGET_ONLY))]
        self.transforms = [_with_points(transform, mirroring) for transform in kept]
        self.needs_segmentation = any(isinstance(_bare(t), READS_SEGMENTATION) for t in kept)

    def __call__(self, **sample: Any) -> dict[str, Any]:
        """The image and the points, after every transform."""
        if not self.needs_segmentation:
            sample.pop("segmentation", None)
        for transform in self.transforms:
            sample = transform(**sample)
        return {"image": sample["image"], "points": sample["points"]}


def _bare(transform: BasicTransform) -> BasicTransform:
    return _bare(transform.transform) if isinstance(transform, RandomTransform) else transform


def _with_points(transform: BasicTransform, mirroring: Mirroring | None) -> BasicTransform:
    if isinstance(transform, RandomTransform):
        changed = copy.copy(transform)
        changed.transform = _with_points(transform.transform, mirroring)
        return changed
    if isinstance(transform, SpatialTransform):
        return MovePoints(transform)
    if isinstance(transform, MirrorTransform):
        return MirrorPoints(transform, mirroring)
    if isinstance(transform, SimulateLowResolutionTransform):
        return LowResolutionInPlace(transform)
    if isinstance(transform, (*MOVES_NO_VOXEL, *READS_SEGMENTATION)):
        return transform
    raise NotImplementedError(
        f"{type(transform).__name__} may move voxels, and how points follow it is not known; leave it out of "
        "get_training_transforms"
    )


class MovePoints(BasicTransform):
    """nnU-Net's rotation, scaling and crop to the patch, with points.

    Voxel o of the patch is sampled at A·(o - (P - 1) / 2) + c - .5 of the input, with the patch's size P and the centre
    c in the input; points go the other way. Without rotation and scaling nnU-Net cuts at floor(c) - P // 2. In its
    two-dimensional augmentation of volumes the first axis stays as it is.

    Raises:
        NotImplementedError: elastic deformation, which has no inverse in closed form, or `align_corners`.
    """

    def __init__(self, transform: SpatialTransform) -> None:
        super().__init__()
        if transform.p_elastic_deform > 0 or transform.align_corners:
            raise NotImplementedError("points cannot follow an elastic deformation or align_corners; switch it off")
        self.transform = transform

    def __call__(self, **sample: Any) -> dict[str, Any]:
        """The sample with image, segmentation and points moved alike."""
        parameters = self.transform.get_parameters(**sample)
        points = self._move(sample.pop("points"), parameters)
        return {**self.transform.apply(sample, **parameters), "points": points}

    def _move(self, points: Tensor, parameters: Mapping[str, Any]) -> Tensor:
        size = torch.tensor(self.transform.patch_size, dtype=points.dtype)
        centre = torch.tensor(parameters["center_location_in_pixels"], dtype=points.dtype)
        moving = points[:, -len(size) :]
        if parameters["affine"] is None:
            moved = moving - torch.floor(centre) + torch.div(size, 2, rounding_mode="floor")
        else:
            inverse = torch.from_numpy(np.linalg.inv(parameters["affine"])).to(points.dtype)
            moved = (moving - (centre - 0.5)) @ inverse.T + (size - 1) / 2
        return torch.cat([points[:, : -len(size)], moved], 1)


class MirrorPoints(BasicTransform):
    """nnU-Net's mirroring, with points: position and side change at once."""

    def __init__(self, transform: MirrorTransform, mirroring: Mirroring | None) -> None:
        super().__init__()
        if mirroring is None or tuple(transform.allowed_axes) != (mirroring.axis,):
            raise NotImplementedError(
                f"images are mirrored along the axes {tuple(transform.allowed_axes)}, but the left-right pairs of "
                f"dataset.json allow {'none' if mirroring is None else mirroring.axis}; mirror along that one only"
            )
        self.transform = transform
        self.mirroring = mirroring

    def __call__(self, **sample: Any) -> dict[str, Any]:
        """The sample with image, segmentation and points mirrored alike."""
        parameters = self.transform.get_parameters(**sample)
        points = sample.pop("points")
        if parameters["axes"]:
            points = mirror(points, self.mirroring, sample["image"].shape[1:])
        return {**self.transform.apply(sample, **parameters), "points": points}


class LowResolutionInPlace(SimulateLowResolutionTransform):
    """nnU-Net's loss of resolution, where points need not follow.

    nnU-Net takes the nearest voxel on the way down, which moves what lies in the image by up to half a voxel along each
    axis. Interpolated linearly in both directions, a dot of σ ≥ 3 voxels moves by less than .04 of one.
    """

    def __init__(self, transform: SimulateLowResolutionTransform) -> None:
        super().__init__(
            transform.scale,
            transform.synchronize_channels,
            transform.synchronize_axes,
            transform.ignore_axes,
            transform.allowed_channels,
            transform.p_per_channel,
        )

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        shape, mode = img.shape[1:], self.upmodes[img.ndim - 1]
        for channel, scales in zip(params["apply_to_channel"], params["scales"], strict=True):
            coarse = [round(size * scale.item()) for size, scale in zip(shape, scales, strict=True)]
            lowered = interpolate(img[channel][None, None], coarse, mode=mode)
            img[channel] = interpolate(lowered, shape, mode=mode)[0, 0]
        return img


def mirror(points: Tensor, mirroring: Mirroring, shape: tuple[int, ...]) -> Tensor:
    """Points (..., L, dim) in the mirrored image of `shape`, every landmark in the place of its partner."""
    points = points[..., list(mirroring.order), :].clone()
    points[..., mirroring.axis] = shape[mirroring.axis] - 1 - points[..., mirroring.axis]
    return points
