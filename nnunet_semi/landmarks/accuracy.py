"""How well a network finds the landmarks in its patches, while it trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nnunet_semi.landmarks.decoding import decode
from nnunet_semi.landmarks.heatmaps import heatmap_logits


def patch_errors(outputs: Tensor, points: Tensor, sigma: Sequence[float], spacing: Sequence[float]) -> Tensor:
    """Radial errors (B, L) in mm, NaN for landmarks that are missing or outside of the patch.

    Where outputs are not finite, as after an overflow of half precision, the error is the diagonal of the patch.

    Args:
        outputs: of the network, (B, 1 + L, *shape).
        points: (B, L, dim) true voxel coordinates in the patch, NaN for missing ones.
        sigma: of the heatmaps, in voxels per axis.
        spacing: in mm per axis.
    """
    found = decode(heatmap_logits(outputs).sigmoid(), sigma).points
    size = torch.tensor(outputs.shape[2:], device=points.device)
    inside = ((points > -0.5) & (points < size - 0.5)).all(-1)
    in_mm = torch.tensor(spacing, dtype=points.dtype, device=points.device)
    errors = ((found - points) * in_mm).norm(dim=-1)
    return errors.where(errors.isfinite(), (size * in_mm).norm()).where(inside, torch.nan)


def mean_error(errors: np.ndarray) -> float:
    """The mean of what is not NaN; NaN where everything is."""
    measured = errors[~np.isnan(errors)]
    return float(measured.mean()) if measured.size else float("nan")


def success_rate(errors: np.ndarray, radius: float) -> float:
    """The share in [0, 1] of the errors that are not NaN that are below a radius; NaN where all of them are."""
    measured = errors[~np.isnan(errors)]
    return float((measured < radius).mean()) if measured.size else float("nan")
