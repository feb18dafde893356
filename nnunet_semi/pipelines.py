"""Taking nnU-Net's augmentation apart: geometry, drawn once for a patch, and intensity, drawn for each view of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.nnunet.random_binary_operator import ApplyRandomBinaryOperatorTransform
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform,
)
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

# these disturb the one-hot prediction of the previous cascade stage, not the image
CASCADE = (ApplyRandomBinaryOperatorTransform, RemoveRandomConnectedComponentFromOneHotEncodingTransform)
MOVES = (SpatialTransform, MirrorTransform, Convert2DTo3DTransform, Convert3DTo2DTransform)
TARGET_ONLY = (DownsampleSegForDSTransform, ConvertSegmentationToRegionsTransform)
READS_SEGMENTATION = (MaskImageTransform, MoveSegAsOneHotToDataTransform)


def _inside(transform: BasicTransform) -> Iterator[BasicTransform]:
    """What it applies, without the wrappers that draw whether, and which of several."""
    if isinstance(transform, RandomTransform):
        yield from _inside(transform.transform)
    elif isinstance(transform, OneOfTransform):
        for choice in transform.list_of_transforms:
            yield from _inside(choice)
    else:
        yield transform


def transforms_in(loader: Any) -> Iterator[BasicTransform]:
    """Every transform of the loaders below `loader`, without the wrappers that draw whether, and which, is applied."""
    for part in getattr(loader, "streams", [loader]):
        for transform in getattr(getattr(part, "transforms", None), "transforms", []):
            yield from _inside(transform)


def _holds(transform: BasicTransform, kinds: tuple[type, ...]) -> bool:
    return any(isinstance(part, kinds) for part in _inside(transform))


def _is_geometry(transform: BasicTransform) -> bool:
    if isinstance(transform, CASCADE):
        return True
    return not isinstance(transform, (ImageOnlyTransform, *TARGET_ONLY))


class GeometryOnly(BasicTransform):
    """The part of an augmentation pipeline that moves voxels, for images without labels.

    Intensity transforms are left out, since every view of a patch draws its own, and so is all that only prepares
    targets. The segmentation that nnU-Net's loader reads beside an unlabeled image is not a label: it is -1 outside
    the image's nonzero region, 0 inside, and in a cascade followed by the prediction of the previous stage. It is
    carried along where a transform needs it, otherwise dropped before any work is done on it.

    Args:
        pipeline: what `nnUNetTrainer.get_training_transforms` returned.
    """

    def __init__(self, pipeline: ComposeTransforms) -> None:
        super().__init__()
        self.transforms = [t for t in pipeline.transforms if any(map(_is_geometry, _inside(t)))]
        self.needs_segmentation = any(_holds(t, READS_SEGMENTATION) for t in self.transforms)

    def without_moves(self) -> GeometryOnly:
        """The part that moves no voxel and draws nothing: what a network needs to see an image as it is."""
        still = copy.copy(self)
        still.transforms = [t for t in self.transforms if not _holds(t, (*MOVES, *CASCADE))]
        return still

    def __call__(self, **sample: Any) -> dict[str, Any]:
        """Transform {'image': (C, *spatial), 'segmentation': (S, *spatial)}; the segmentation comes back empty."""
        segmentation = sample["segmentation"]
        if not self.needs_segmentation:
            del sample["segmentation"]
        for transform in self.transforms:
            sample = transform(**sample)
        return {"image": sample["image"], "segmentation": segmentation.new_zeros(0)}
