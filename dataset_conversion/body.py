"""The box around the body in a CT, without the air around it and, as a rule, without the table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

THRESHOLD = -500  # HU, between air and the skin
MARGIN = 10.0  # mm
LONGEST = 256  # voxels per axis that are looked at; a larger volume is thinned out

Box = tuple[tuple[int, int], ...]  # first voxel and the one after the last, per axis


def body_box(values: np.ndarray, spacing: Sequence[float]) -> Box:
    """The box of the largest connected part above `THRESHOLD`, with a margin; all of it where nothing is above.

    Args:
        values: in HU.
        spacing: in mm, in the order of the axes of `values`.
    """
    steps = [-(-length // LONGEST) for length in values.shape]
    mask = values[tuple(slice(None, None, step) for step in steps)] > THRESHOLD
    parts, count = ndimage.label(mask)
    if not count:
        return tuple((0, length) for length in values.shape)
    largest = np.bincount(parts.ravel())[1:].argmax()
    found = ndimage.find_objects(parts)[largest]
    box = []
    for part, step, length, size in zip(found, steps, values.shape, spacing, strict=True):
        margin = int(np.ceil(MARGIN / size)) + step - 1
        box.append((max(0, part.start * step - margin), min(length, (part.stop - 1) * step + 1 + margin)))
    return tuple(box)


def around(values: np.ndarray, box: Box) -> Box:
    """A box enlarged so that it holds every value that is not 0."""
    found = ndimage.find_objects((values != 0).astype(np.uint8))
    if not found:
        return box
    return tuple((min(a, s.start), max(b, s.stop)) for (a, b), s in zip(box, found[0], strict=True))
