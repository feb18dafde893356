"""Distances between the surfaces of two masks, and what is computed from them: NSD, Hausdorff distances, ASSD.

A surface point lies where 2 × 2 × 2 voxels (2 × 2 pixels) meet that are not all alike; beyond the border of the image
there is background, so that every surface is closed. The piece of surface at such a point is that of marching cubes
(Lorensen and Cline 1987), in 2D of marching squares; its area in mm² (in 2D its length in mm) is the weight of the
point in every share, mean and percentile. These are the conventions of the library surface-distance, with which FLARE22
scores. Unlike there, no distance map is made: a point finds its neighbour nearby, or else asks a KD-tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

NEAR = 400  # places around a surface point that are looked at before a tree is asked
MOST_STEPS = 16  # of them at a time


@dataclass(frozen=True)
class Surface:
    """What one surface has to say about its distance to another.

    Attributes:
        distances: from each of its points to the nearest point of the other; empty if there is no other.
        weights: the area (in 2D the length) of the piece of surface at each point; empty if its mask is.
    """

    distances: Floats
    weights: Floats

    def percentile(self, percent: float) -> float:
        """The smallest distance that is not exceeded on `percent` % of the area."""
        if percent == 100:
            return float(np.max(self.distances))
        order = np.argsort(self.distances, kind="stable")
        share = np.cumsum(self.weights[order]) / np.sum(self.weights)
        position = min(int(np.searchsorted(share, percent / 100)), len(order) - 1)
        return float(self.distances[order[position]])


@dataclass(frozen=True)
class SurfaceDistances:
    """The surfaces of a reference and a prediction; all measures are the same if the two are swapped."""

    reference: Surface
    prediction: Surface

    @property
    def defined(self) -> bool:
        """Whether neither mask is empty, so that there are distances."""
        return len(self.reference.weights) > 0 and len(self.prediction.weights) > 0

    def nsd(self, tolerance: float) -> float:
        """Normalised surface Dice: the share of both surfaces that is at most `tolerance` from the other.

        0 if one mask is empty, NaN if both are.
        """
        both = (self.reference, self.prediction)
        area = sum(float(np.sum(surface.weights)) for surface in both)
        if not self.defined:
            return 0.0 if area else math.nan
        within = sum(float(np.sum(surface.weights[surface.distances <= tolerance])) for surface in both)
        return within / area

    def hausdorff(self, percent: float = 100.0) -> float:
        """Hausdorff distance: the percentile of the distances in each direction, and the larger of the two.

        NaN if a mask is empty.
        """
        if not self.defined:
            return math.nan
        return max(self.reference.percentile(percent), self.prediction.percentile(percent))

    def average(self) -> float:
        """Average symmetric surface distance (ASSD): the mean over both surfaces; NaN if a mask is empty."""
        if not self.defined:
            return math.nan
        both = (self.reference, self.prediction)
        area = sum(float(np.sum(surface.weights)) for surface in both)
        return sum(float(np.sum(surface.weights * surface.distances)) for surface in both) / area


def surface_distances(reference: Mask, prediction: Mask, spacing: Sequence[float]) -> SurfaceDistances:
    """Measures the distances between the surfaces of two masks, in the unit of the spacing.

    Time and memory grow with the arrays: pass the box around both masks, where it ends makes no difference.

    Args:
        reference: 2D or 3D.
        prediction: of the same shape.
        spacing: size of a voxel along each axis.
    """
    codes = [surface_codes(mask) for mask in (reference, prediction)]
    full = 2 ** (2**reference.ndim) - 1
    points = [np.flatnonzero(code - np.uint8(1) < full - 1) for code in codes]  # neither 0 nor `full`: 0 wraps to 255
    table = surface_areas(tuple(float(size) for size in spacing))
    surfaces = [
        Surface(_nearest(points[own], points[other], codes[own].shape, spacing), table[codes[own].ravel()[points[own]]])
        for own, other in ((0, 1), (1, 0))
    ]
    return SurfaceDistances(*surfaces)


def region_hausdorff(reference: Mask, prediction: Mask, spacing: Sequence[float]) -> float:
    """Hausdorff distance between two masks as sets of voxel centres, as ITK's filter gives it; NaN if one is empty."""
    points = np.flatnonzero(reference), np.flatnonzero(prediction)
    if not (len(points[0]) and len(points[1])):
        return math.nan
    ways = ((0, 1), (1, 0))
    return max(float(_nearest(points[a], points[b], reference.shape, spacing).max()) for a, b in ways)


def _nearest(points: Indices, others: Indices, shape: tuple[int, ...], spacing: Sequence[float]) -> Floats:
    """The distance from each point to the nearest of the others, both as flat indices into an array of this shape.

    First looks at the places around all points at once, the nearest first: most points of a prediction find the other
    surface there. The rest ask a tree for their neighbour. Either way a distance is computed from whole numbers of
    voxels, free of the rounding of coordinates, because a tolerance is often a multiple of the spacing.
    """
    if not len(others):
        return np.empty(0)
    size = np.asarray(spacing, float)
    here, there = (np.stack(np.unravel_index(flat, shape), axis=1) for flat in (points, others))
    distances = _look_around(here, there, shape, tuple(size))
    far = np.flatnonzero(distances < 0)
    if len(far):
        tree = cKDTree(there * size, leafsize=32, balanced_tree=False, compact_nodes=False)  # the fastest on a grid
        distances[far] = _length_of(here[far] - there[tree.query(here[far] * size)[1]], size)
    return distances


def _look_around(here: Indices, there: Indices, shape: tuple[int, ...], spacing: tuple[float, ...]) -> Floats:
    """The distance to the nearest of the points `there` if it is among the NEAR places around a point, else -1."""
    steps, lengths = _steps(spacing)
    reach = np.abs(steps).max(axis=0)
    padded = [int(size + 2 * margin) for size, margin in zip(shape, reach, strict=True)]  # no step leaves the array
    strides = np.array([math.prod(padded[axis + 1 :]) for axis in range(len(padded))])
    occupied = np.zeros(math.prod(padded), bool)
    occupied[(there + reach) @ strides] = True
    distances = np.full(len(here), -1.0)
    searching, place = np.arange(len(here)), (here + reach) @ strides
    offsets, start = steps @ strides, 0
    while start < len(offsets) and len(place):  # some steps at a time: to sort out who searches on costs more
        end = start + min(MOST_STEPS, start // 4 + 1)
        found = np.full(len(place), -1.0)
        for step, length in zip(offsets[start:end][::-1], lengths[start:end][::-1], strict=True):  # the shortest stays
            found[occupied.take(place + step, mode="clip")] = length  # the fastest mode
        distances[searching] = found
        left = found < 0
        searching, place, start = searching[left], place[left], end
    return distances


@lru_cache
def _steps(spacing: tuple[float, ...]) -> tuple[Indices, Floats]:
    """The NEAR shortest steps from a voxel to another, itself first (n × axes), and their lengths, ascending."""
    ball = math.pi if len(spacing) == 2 else 4 / 3 * math.pi
    radius = 1.2 * (NEAR * math.prod(spacing) / ball) ** (1 / len(spacing))  # of a ball with about so many voxels
    axes = [np.arange(-int(radius / size), int(radius / size) + 1) for size in spacing]
    steps = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(spacing))
    lengths = _length_of(steps, np.asarray(spacing))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius][:NEAR]  # all that are as short are among `steps`
    return steps[order], lengths[order]


def _length_of(steps: Indices, size: Floats) -> Floats:
    return np.sqrt(sum((column * width) ** 2 for column, width in zip(steps.T, size, strict=True)))


# --- the points of a surface and their areas ---


def surface_codes(mask: Mask) -> NDArray[np.uint8]:
    """Which of the voxels around each corner of a voxel are set: a bit each, the next along the last axis in bit 0.

    Returns:
        An array one larger than the mask along each axis; 0 outside of the mask, all bits set inside of it.
    """
    codes = np.pad(mask.view(np.uint8), 1)
    for axis in reversed(range(mask.ndim)):
        before, after = (
            tuple(part if other == axis else slice(None) for other in range(mask.ndim))
            for part in (slice(None, -1), slice(1, None))
        )
        codes = codes[before] | codes[after] << np.uint8(2 ** (mask.ndim - 1 - axis))
    return codes


@lru_cache
def surface_areas(spacing: tuple[float, ...]) -> Floats:
    """The area (in 2D the length) of the piece of surface at a point, for each of its codes (256, in 2D 16)."""
    if len(spacing) == 2:
        return np.array([_length(code, *spacing) for code in range(16)])
    faces = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]])
    return np.array([np.sum(np.linalg.norm(pieces * faces, axis=1)) for pieces in _triangles()])


def _length(code: int, height: float, width: float) -> float:
    """Marching squares: the contour crosses the edges between unlike pixels in their middle."""
    (a, b), (c, d) = (code >> 3 & 1, code >> 2 & 1), (code >> 1 & 1, code & 1)
    corner = math.hypot(height, width) / 2  # cuts off one pixel
    if (a + b + c + d) % 2:
        return corner
    if a == d:
        return 2 * corner if a != b else 0.0
    return width if a == b else height


@lru_cache
def _triangles() -> list[Floats]:
    """Marching cubes: for each code the area vectors (n × 3) of the triangles between voxels of size 1.

    Where more than half of the voxels are set, inside and outside change places, so that both are treated alike.
    """
    from skimage.measure import marching_cubes  # here, because 2D does without

    found = [np.empty((0, 3))]
    for code in range(1, 256):
        set_bits = code if code.bit_count() <= 4 else 255 - code
        if not set_bits:
            found.append(np.empty((0, 3)))
            continue
        cube = np.array([set_bits >> bit & 1 for bit in range(8)], np.float32).reshape(2, 2, 2)
        corners, triangles, *_ = marching_cubes(cube, 0.5, method="lorensen")
        a, b, c = (corners[triangles[:, number]].astype(float) for number in range(3))
        found.append(np.cross(b - a, c - a) / 2)
    return found
