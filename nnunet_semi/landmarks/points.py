"""Points through nnU-Net's preprocessing and back: transpose, crop to nonzero, resample.

nnU-Net keeps in a case's .pkl what it did: `shape_before_cropping`, `bbox_used_for_cropping` and
`shape_after_cropping_and_before_resampling`, all of them after the transpose. Its resampling maps the outer borders of
the two grids onto each other, so that a coordinate c becomes (c + .5) · new / old - .5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def resample(points: np.ndarray, old: Sequence[int], new: Sequence[int]) -> np.ndarray:
    """Coordinates on a grid of `new` voxels over the same extent as one of `old` voxels."""
    return (points + 0.5) * (np.array(new) / np.array(old)) - 0.5


def to_preprocessed(
    voxel: np.ndarray, properties: Mapping[str, Any], shape: Sequence[int], transpose_forward: Sequence[int]
) -> np.ndarray:
    """Coordinates in a preprocessed case.

    Args:
        voxel: (L, dim) in the image as it was read, array order; a 2D image is the only slice of a volume.
        properties: of the preprocessed case.
        shape: of the preprocessed case, 3 numbers.
        transpose_forward: from the plans.

    Returns:
        (L, 3)
    """
    if voxel.shape[1] == 2:
        voxel = np.pad(voxel, ((0, 0), (1, 0)))
    first = np.array(properties["bbox_used_for_cropping"])[:, 0]
    cropped = voxel[:, list(transpose_forward)] - first
    return resample(cropped, properties["shape_after_cropping_and_before_resampling"], shape)


def to_raw(
    points: np.ndarray, properties: Mapping[str, Any], shape: Sequence[int], transpose_forward: Sequence[int], dim: int
) -> np.ndarray:
    """The inverse of `to_preprocessed`: (L, dim) in the image as it was read, of points (L, 3) or (L, 2)."""
    if points.shape[1] == 2:
        points = np.pad(points, ((0, 0), (1, 0)))
    cropped = resample(points, shape, properties["shape_after_cropping_and_before_resampling"])
    transposed = cropped + np.array(properties["bbox_used_for_cropping"])[:, 0]
    return transposed[:, np.argsort(transpose_forward)][:, 3 - dim :]
