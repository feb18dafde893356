"""Heatmaps: rendered from points where they are needed, and read from the outputs of nnU-Net's network.

The network keeps nnU-Net's outputs: the background and one per landmark. The heatmap of landmark l is
sigmoid(z_l - z_0 + logit(BLOB_LEVEL)), so that z_l > z_0, which makes nnU-Net's argmax a blob of label l, holds exactly
where the heatmap is above BLOB_LEVEL. Stock prediction needs no further rule, and no output has to be held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOB_LEVEL = 0.25
SMALLEST_SIGMA = 1.0  # voxels; below it a landmark between two voxels leaves no trace


def heatmap_logits(outputs: Tensor) -> Tensor:
    """Logits of the heatmaps (B, L, *shape), float32, from the network's outputs (B, 1 + L, *shape)."""
    outputs = outputs.float()
    return outputs[:, 1:] - outputs[:, :1] + math.log(BLOB_LEVEL / (1 - BLOB_LEVEL))


def voxel_sigma(sigma: float, spacing: Sequence[float]) -> tuple[float, ...]:
    """The σ of a heatmap in voxels per axis, from a σ in mm; at least `SMALLEST_SIGMA` along every axis."""
    return tuple(max(sigma / float(s), SMALLEST_SIGMA) for s in spacing)


def render(points: Tensor, shape: Sequence[int], sigma: Sequence[float]) -> Tensor:
    """Gaussians of height 1, exp(-|x - p|² / 2σ²), as the outer product of one row per axis.

    Args:
        points: (B, L, dim) voxel coordinates, whole numbers at voxel centres; NaN for a missing landmark, whose
            heatmap is 0; they may lie outside.
        shape: of the heatmaps, dim numbers.
        sigma: in voxels, dim numbers.

    Returns:
        (B, L, *shape), float32, on the device of `points`.
    """
    points = points.float()
    heatmaps = torch.ones(points.shape[:2], device=points.device)
    for axis, (length, width) in enumerate(zip(shape, sigma, strict=True)):
        grid = torch.arange(length, device=points.device, dtype=torch.float32)
        row = torch.exp(-0.5 * ((grid - points[..., axis, None]) / width) ** 2)
        row = row.nan_to_num(0.0).reshape(*points.shape[:2], *(1,) * axis, length)
        heatmaps = heatmaps[..., None] * row
    return heatmaps


def at_resolution(points: Tensor, factors: Sequence[float]) -> Tensor:
    """Coordinates on a grid with `factors` times as many voxels per axis over the same extent (half-pixel rule)."""
    scale = torch.as_tensor(factors, dtype=points.dtype, device=points.device)
    return (points + 0.5) * scale - 0.5
