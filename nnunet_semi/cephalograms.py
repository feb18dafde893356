"""The stack of lateral X-rays of CL-Detection 2023: 8 GB of pictures, of which one at a time is in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_semi import mha
from nnunet_semi.errors import Problem, Unusable


def stack_header(path: Path) -> mha.Header:
    """The header of a stack of pictures with one or three channels of 8 bits.

    Raises:
        Unusable: it is none.
    """
    header = mha.read_header(path)
    if len(header.size) != 3 or header.channels not in (1, 3) or header.dtype != np.uint8:
        found = f"{header.channels} channel(s) of {header.dtype} in {len(header.size)} dimensions {header.size}"
        raise Unusable(Problem(path, found, "a stack of pictures with 1 or 3 channels of 8 bits"))
    if not header.compressed:
        mha.refuse_incomplete(header)
    return header


def read_cephalogram(header: mha.Header, number: int, points: Iterable[tuple[float, float]] = ()) -> np.ndarray:
    """The image with a number, from 1: rows × columns, grey, without its padding.

    What is zero at the right and below is cut off, up to the outermost of the points; coordinates stay.

    Raises:
        Unusable: the file ends before, or the image is zero everywhere.
    """
    values = grey(mha.read_slice(header, number - 1))
    rows, columns = np.flatnonzero(values.any(axis=1)), np.flatnonzero(values.any(axis=0))
    if not rows.size:
        raise Unusable(Problem(header.path, f"image {number}, which is zero everywhere", "an image in every slice"))
    known = list(points)
    right = max([columns[-1], *(int(np.ceil(x)) for x, _ in known)]) + 1
    bottom = max([rows[-1], *(int(np.ceil(y)) for _, y in known)]) + 1
    return np.ascontiguousarray(values[:bottom, :right])


def grey(values: np.ndarray) -> np.ndarray:
    """One channel of 8 bits: the first of three equal ones, or their luminance (ITU-R 601) where they differ."""
    if values.ndim == 2:
        return values
    picture = Image.fromarray(values)
    first, *others = picture.split()  # ten times faster than NumPy on interleaved channels
    same = all(first.tobytes() == other.tobytes() for other in others)
    return np.asarray(first if same else picture.convert("L"))
