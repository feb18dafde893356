"""The box around a class in two label maps, so that surfaces are looked for where they can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from nnunet_semi.evaluation.overlap import Label, mask_of, members
from nnunet_semi.evaluation.surface import SurfaceDistances, surface_distances
from nnunet_semi.labelmaps.files import LabelMap

Box = tuple[slice, ...]


class CroppedPair:
    """Two label maps of one shape, in which the boxes of all labels are looked up once.

    Args:
        reference: 2D or 3D.
        prediction: of the same shape.
        spacing: size of a voxel along each axis.
    """

    def __init__(self, reference: LabelMap, prediction: LabelMap, spacing: Sequence[float]) -> None:
        self.reference, self.prediction, self.spacing = reference, prediction, spacing
        self._boxes = [_boxes(array) for array in (reference, prediction)]

    def box(self, label: Label) -> Box | None:
        """The smallest box that holds a label or region in both label maps; None if neither has it."""
        found = [
            boxes[number - 1]
            for boxes in self._boxes
            for number in members(label)
            if 0 < number <= len(boxes) and boxes[number - 1] is not None
        ]
        if not found:
            return None
        return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*found, strict=True))

    def masks(self, label: Label, within: Box = ()) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Where each label map has the label, both cropped to its box, and to `within` where that is given."""
        box = self.box(label) or (slice(0, 0),) * self.reference.ndim
        box = tuple(_overlap(a, b) for a, b in zip(box, within, strict=False)) + box[len(within) :]
        return mask_of(self.reference[box], label), mask_of(self.prediction[box], label)

    def distances(self, label: Label, within: Box = ()) -> SurfaceDistances:
        """The distances between the two surfaces of a label or region, inside of `within` where that is given."""
        return surface_distances(*self.masks(label, within), self.spacing)


def _boxes(array: LabelMap) -> list[Box | None]:
    """The box of each label from 1 on, looked for in that of the foreground, which is found much faster."""
    if not array.size:
        return []
    profiles, rest = [], array
    for _ in range(array.ndim - 1):  # twice as fast as reducing the whole array for each axis
        profiles.append(rest.reshape(len(rest), -1).max(axis=1))
        rest = rest.max(axis=0)
    profiles.append(rest)
    if not profiles[0].any():
        return []
    ends = [np.flatnonzero(profile)[[0, -1]].tolist() for profile in profiles]
    found = find_objects(array[tuple(slice(first, last + 1) for first, last in ends)])
    starts = [first for first, _ in ends]
    return [box and tuple(slice(s.start + a, s.stop + a) for s, a in zip(box, starts, strict=True)) for box in found]


def _overlap(one: slice, other: slice) -> slice:
    start = max(one.start, other.start)
    return slice(start, max(start, min(one.stop, other.stop)))


def without_thin_axis(
    reference: LabelMap, prediction: LabelMap, spacing: Sequence[float]
) -> tuple[LabelMap, LabelMap, Sequence[float]]:
    """The slice of a volume that has only one, and everything else as it is."""
    if reference.ndim < 3 or 1 not in reference.shape:
        return reference, prediction, spacing
    thin = reference.shape.index(1)
    return reference.squeeze(thin), prediction.squeeze(thin), [*spacing[:thin], *spacing[thin + 1 :]]
