"""Batches of images and points; heatmaps are rendered later, on the device, so that loading is as cheap for any L."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from threadpoolctl import threadpool_limits

from nnunet_semi.landmarks.augmentation import PointPipeline
from nnunet_semi.landmarks.mirroring import Mirroring
from nnunet_semi.landmarks.points import to_preprocessed


class PointLoader(nnUNetDataLoader):
    """nnU-Net's loader with points in the place of segmentations.

    A batch is {'data': (B, C, *patch), 'target': (B, L, dim) voxel coordinates in the patch, 'keys': B case names}.
    Missing landmarks are NaN; those outside of the patch keep their coordinates. Where nnU-Net oversamples foreground,
    a landmark is drawn, and the patch lies around it at random, up to a quarter of the patch off its centre.
    """

    @classmethod
    def of(
        cls,
        loader: nnUNetDataLoader,
        voxel: Mapping[str, np.ndarray],
        transpose_forward: Sequence[int],
        mirroring: Mirroring | None,
    ) -> PointLoader:
        """Like `loader`, which stays as it is.

        Args:
            voxel: case → landmarks (L, dim) in the image as nnU-Net read it, array order.
            transpose_forward: from the plans.
            mirroring: see `PointPipeline`.
        """
        points = cls.__new__(cls)
        points.__dict__.update(vars(loader))
        points.transforms = PointPipeline(loader.transforms, mirroring)
        points.voxel = voxel
        points.transpose_forward = transpose_forward
        return points

    voxel: Mapping[str, np.ndarray]
    transpose_forward: Sequence[int]

    def generate_train_batch(self) -> dict[str, Any]:
        """Called by `next`."""
        keys = self.get_indices()
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            samples = [self._sample(key, self.get_do_oversample(number)) for number, key in enumerate(keys)]
        images, points = (torch.stack([sample[name] for sample in samples]) for name in ("image", "points"))
        return {"data": images, "target": points, "keys": keys}

    def _sample(self, key: str, on_landmark: bool) -> dict[str, torch.Tensor]:
        data, segmentation, _, properties = self._data.load_case(key)
        shape = data.shape[1:]
        points = to_preprocessed(self.voxel[key], properties, shape, self.transpose_forward)
        lower, upper = self.get_bbox(shape, on_landmark, {1: self._places(points, shape)})
        box = [[a, b] for a, b in zip(lower, upper, strict=True)]
        sample = {"image": torch.from_numpy(crop_and_pad_nd(data, box, 0)).float()}
        if self.transforms.needs_segmentation:
            sample["segmentation"] = torch.from_numpy(crop_and_pad_nd(segmentation, box, -1)).to(torch.int16)
        points = points - lower
        if self.patch_size_was_2d:
            sample = {name: values[:, 0] for name, values in sample.items()}
            points = points[:, 1:]
        return self.transforms(**sample, points=torch.from_numpy(points).float())

    def _places(self, points: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """What nnU-Net takes for foreground voxels (N, 1 + 3): places about the landmarks that lie in the image."""
        inside = ((points > -0.5) & (points < np.array(shape) - 0.5)).all(1)  # False where NaN
        reach = np.array(self.patch_size) / 4
        around = points[inside] + np.random.uniform(-reach, reach, (inside.sum(), 3))
        return np.pad(np.round(around).astype(int), ((0, 0), (1, 0)))
