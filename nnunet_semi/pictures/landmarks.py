"""Landmarks drawn on an image: reference red, prediction green, joined by yellow, with their distance in mm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from nnunet_semi.pictures.images import Picture, as_grey

RED, GREEN, YELLOW, DARK = (255, 64, 64), (64, 230, 90), (255, 225, 60), (20, 20, 20)
SIZE = 1000  # pixels of the longer side
GAP = 8  # pixels between the views of a volume

Points = NDArray[np.float64]
Box = tuple[float, float, float, float]


def draw_landmarks(
    picture: Picture, reference: Points, prediction: Points, errors: Points, size: int = SIZE
) -> Image.Image:
    """A picture of one case; of a volume its means from three sides: above, front and left.

    Args:
        picture: the image.
        reference: (L, dim) voxels in array order, NaN for missing ones.
        prediction: the same landmarks.
        errors: (L,) in mm.
        size: pixels of the longer side.
    """
    if picture.values.ndim == 3 and picture.values.shape[0] == 1:
        picture = Picture(picture.values[0], picture.spacing[1:])
        reference, prediction = (p[:, -2:] for p in (reference, prediction))
    if picture.values.ndim == 2:
        return _draw_view(picture, reference, prediction, errors, size)
    views = []
    for axis in range(3):
        rest = [other for other in range(3) if other != axis]
        values, red, green = as_grey(picture.values.mean(axis=axis)), reference[:, rest], prediction[:, rest]
        if axis:  # the first axis of this view is z, which grows upwards
            red, green = ((points - [len(values) - 1, 0]) * [-1, 1] for points in (red, green))
            values = values[::-1]
        flat = Picture(values, tuple(picture.spacing[other] for other in rest))
        views.append(_draw_view(flat, red, green, errors, size * 2 // 3))
    return _side_by_side(views)


def _draw_view(picture: Picture, reference: Points, prediction: Points, errors: Points, size: int) -> Image.Image:
    extent = np.array(picture.values.shape) * picture.spacing
    shape = np.maximum(np.round(extent * size / extent.max()), 1).astype(int)
    page = Image.fromarray(picture.values).resize((int(shape[1]), int(shape[0])), Image.Resampling.LANCZOS)
    page = page.convert("RGB")
    draw = ImageDraw.Draw(page)
    factors = shape / np.array(picture.values.shape)
    red, green = ((points + 0.5) * factors - 0.5 for points in (reference, prediction))
    radius = max(2.0, size / 250)
    font = ImageFont.load_default(size=max(10, size // 65))
    for a, b in zip(red, green, strict=True):
        if not np.isnan([a, b]).any():
            draw.line([(a[1], a[0]), (b[1], b[0])], fill=YELLOW, width=max(2, size // 400))
    for points, colour in ((red, RED), (green, GREEN)):
        for y, x in points[~np.isnan(points).any(axis=1)]:
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline=DARK)
    taken: list[Box] = [
        (x - radius, y - radius, x + radius, y + radius) for y, x in np.concatenate([red, green]) if not np.isnan(x)
    ]
    for place, text, colour in _captions(red, green, errors):
        box = _free_place(draw, place, text, font, radius, page.size, taken)
        taken.append(box)
        draw.text(box[:2], text, fill=colour, font=font, stroke_width=2, stroke_fill=DARK)
    return page


def _captions(red: Points, green: Points, errors: Points) -> Iterator[tuple[Points, str, tuple[int, int, int]]]:
    for a, b, error in zip(red, green, errors, strict=True):
        here = [not np.isnan(point).any() for point in (a, b)]
        if all(here):
            yield b, f"{error:.1f}", YELLOW
        elif here[0]:
            yield a, "missed", RED
        elif here[1]:
            yield b, "invented", GREEN


def _free_place(
    draw: ImageDraw.ImageDraw,
    place: Points,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    radius: float,
    page: tuple[int, int],
    taken: Sequence[Box],
) -> Box:
    """Where around a point a text covers least of what is drawn already."""
    y, x = place
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height, apart = right - left, bottom, radius + 4
    candidates = []
    for far in (1, 3):
        shift = apart * far
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            a = x + dx * shift - (0 if dx > 0 else width if dx < 0 else width / 2)
            b = y + dy * shift - (0 if dy > 0 else height if dy < 0 else height / 2)
            candidates.append((a, b, a + width, b + height))
    return min(candidates, key=lambda box: sum(_shared(box, other) for other in taken) + _outside(box, page))


def _shared(one: Box, other: Box) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _outside(box: Box, page: tuple[int, int]) -> float:
    return 1e6 * (max(0.0, -box[0]) + max(0.0, -box[1]) + max(0.0, box[2] - page[0]) + max(0.0, box[3] - page[1]))


def _side_by_side(views: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (sum(v.width for v in views) + GAP * (len(views) - 1), max(v.height for v in views)))
    left = 0
    for view in views:
        page.paste(view, (left, 0))
        left += view.width + GAP
    return page
