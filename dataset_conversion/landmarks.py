"""Landmarks as small discs or balls in a label map, which stock commands want beside the exact coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RADIUS = 2.0  # mm

Point = tuple[float, ...]


def draw_balls(
    points: Mapping[str, Point | None], size: Sequence[int], spacing: Sequence[float], radius: float = RADIUS
) -> np.ndarray:
    """Label i around the i-th landmark, everywhere where no other one is nearer; the pixel it lies in is always set.

    Args:
        points: name → coordinates in pixels; a missing landmark, or one outside of the image, leaves no label.
        size: of the image, in the order x, y(, z).
        spacing: in mm.
        radius: in mm.

    Returns:
        Labels in array order (z, )y, x.
    """
    labels = np.zeros(tuple(size[::-1]), np.uint8 if len(points) < 256 else np.uint16)
    nearest = np.full(labels.shape, np.inf, np.float32)
    for label, point in enumerate(points.values(), 1):
        if point is None:
            continue
        scale, centre = np.array(spacing[::-1], float), np.array(point[::-1], float)
        first = np.maximum(np.ceil(np.minimum(centre - radius / scale, np.round(centre))), 0).astype(int)
        last = np.floor(np.maximum(centre + radius / scale, np.round(centre))).astype(int) + 1
        box = tuple(slice(a, max(a, min(b, length))) for a, b, length in zip(first, last, labels.shape, strict=True))
        grid = np.indices(labels[box].shape).reshape(len(size), -1).T + first
        distance = np.linalg.norm((grid - centre) * scale, axis=1).astype(np.float32)
        distance[(np.abs(grid - centre) <= 0.5).all(axis=1)] *= 1e-3  # its own pixel
        distance = distance.reshape(labels[box].shape)
        wins = (distance < nearest[box]) & (distance <= radius)
        labels[box][wins] = label
        nearest[box][wins] = distance[wins]
    return labels
