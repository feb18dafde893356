"""What a predicted label map looks like: the volume of every class and the number of its components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from nnunet_semi.filtering.estimators import Classes, LabelMap


def volumes(prediction: LabelMap, classes: Classes, voxel_size: float) -> dict[str, float]:
    """Voxels of every class, times the size of one."""
    counts = np.bincount(prediction.ravel(), minlength=1 + max(max(labels) for labels in classes.values()))
    return {name: float(counts[list(labels)].sum() * voxel_size) for name, labels in classes.items()}


def components(prediction: LabelMap, classes: Classes) -> dict[str, int]:
    """Number of connected components of every class, of any size; voxels that touch at a corner are connected."""
    boxes = ndimage.find_objects(prediction)
    everywhere = np.ones((3,) * prediction.ndim)
    found = {}
    for name, labels in classes.items():
        within = [boxes[label - 1] for label in labels if label <= len(boxes) and boxes[label - 1] is not None]
        box = tuple(_hull([slices[axis] for slices in within]) for axis in range(prediction.ndim)) if within else ()
        found[name] = int(ndimage.label(np.isin(prediction[box], labels), everywhere)[1]) if within else 0
    return found


def _hull(slices: Sequence[slice]) -> slice:
    return slice(min(s.start for s in slices), max(s.stop for s in slices))


def voxel_size(properties: dict[str, Any], spacing: Sequence[float], transpose_forward: Sequence[int]) -> float:
    """Size of a preprocessed voxel: mm³, or mm² for a 2D image (pixels where its format knows no spacing).

    Args:
        properties: of the case, as nnU-Net's preprocessing left them.
        spacing: of the configuration; a 2D configuration leaves the first axis as it was.
        transpose_forward: the order of axes in the plans.
    """
    first = properties["spacing"][transpose_forward[0]]
    if properties["shape_before_cropping"][0] == 1 and len(spacing) == 2:  # nnU-Net makes up a slice distance
        return float(np.prod(spacing))
    return float(np.prod(spacing if len(spacing) == 3 else [first, *spacing]))
