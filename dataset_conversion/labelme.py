"""LabelMe's JSON files: reading them whatever their encoding, and drawing their shapes as LabelMe does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from nnunet_semi.errors import Problem, Unusable

ENCODINGS = ("utf-8-sig", "cp950", "latin-1")  # the last one reads anything, and coordinates are ASCII
FARTHEST = 1e6  # pixels from the corner; beyond, drawing overflows

# What LabelMe draws with, in pixels.
LINE_WIDTH = 10
POINT_RADIUS = 5

LEAST_POINTS = {"polygon": 1, "linestrip": 1}  # a polygon of 1 or 2 points is drawn as what it is
EXACT_POINTS = {"rectangle": 2, "circle": 2, "line": 2, "point": 1}


@dataclass(frozen=True)
class Shape:
    """One shape: its class, its kind, and its points (x, y) in pixels."""

    label: str
    kind: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Annotation:
    """What a file says about an image; names of images in it are never looked at.

    Attributes:
        size: width and height of the image, None where the file does not say it.
        shapes: in their order.
    """

    size: tuple[int, int] | None
    shapes: tuple[Shape, ...]


def read(path: Path) -> Annotation:
    """Reads one file.

    Raises:
        Unusable: it is no such file, or a shape cannot be drawn.
    """
    content = _load(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise Unusable(Problem(path, "JSON without a list `shapes`", "a file of LabelMe"))
    size = content.get("imageWidth"), content.get("imageHeight")
    known = all(isinstance(length, int) and length > 0 for length in size)
    return Annotation(size if known else None, tuple(_shape(path, i, shape) for i, shape in enumerate(shapes)))


def _load(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unusable(Problem(path, f"{error.strerror}", "a file that can be read")) from error
    for encoding in ENCODINGS:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Unusable(Problem(path, f"no JSON ({error})", "a file of LabelMe")) from error
    raise AssertionError("latin-1 decodes every byte")


def _shape(path: Path, number: int, shape: Any) -> Shape:
    where = f"shape {number + 1}"
    if not isinstance(shape, dict) or not isinstance(shape.get("points"), list):
        raise Unusable(Problem(path, f"{where} without points", "a list of points [x, y]"))
    kind = shape.get("shape_type") or "polygon"  # old versions know nothing else
    if not isinstance(kind, str) or kind not in LEAST_POINTS | EXACT_POINTS:
        known = ", ".join(LEAST_POINTS | EXACT_POINTS)
        raise Unusable(Problem(path, f"{where} of the type {kind!r}", known))
    try:
        points = tuple((float(x), float(y)) for x, y in shape["points"])
    except (TypeError, ValueError, OverflowError):
        raise Unusable(Problem(path, f"{where} with points that are no numbers", "points [x, y]")) from None
    if not all(abs(value) <= FARTHEST for point in points for value in point):  # NaN as well
        raise Unusable(Problem(path, f"{where} with points far outside or undefined", "points in the image"))
    needed = EXACT_POINTS.get(kind, len(points))
    if len(points) != needed or len(points) < LEAST_POINTS.get(kind, 1):
        expected = needed if kind in EXACT_POINTS else f"{LEAST_POINTS[kind]} or more"
        raise Unusable(Problem(path, f"{where}, a {kind} of {len(points)} points", f"{expected}"))
    return Shape(str(shape.get("label")), kind, points)


def draw(shapes: Iterable[Shape], values: Iterable[int], size: tuple[int, int]) -> np.ndarray:
    """Draws shapes over each other, each with its value, on zeros.

    Args:
        shapes: in the order in which they are drawn.
        values: one for each of them, up to 255.
        size: width and height.

    Returns:
        Height × width, uint8.
    """
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    for shape, value in zip(shapes, values, strict=True):
        _draw(pen, shape, value)
    return np.asarray(canvas)


def _draw(pen: ImageDraw.ImageDraw, shape: Shape, value: int) -> None:
    points = list(shape.points)
    if shape.kind == "circle":
        _disc(pen, points[0], math.dist(*points), value)
    elif shape.kind == "rectangle":
        (left, right), (top, bottom) = (sorted(values) for values in zip(*points, strict=True))
        pen.rectangle([left, top, right, bottom], outline=value, fill=value)
    elif shape.kind in ("line", "linestrip"):
        pen.line(points, fill=value, width=LINE_WIDTH)
    elif shape.kind == "point":
        _disc(pen, points[0], POINT_RADIUS, value)
    elif len(points) == 1:
        pen.point(points, fill=value)
    else:
        pen.polygon(points, outline=value, fill=value)


def _disc(pen: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, value: int) -> None:
    x, y = centre
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], outline=value, fill=value)
