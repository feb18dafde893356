"""The lists of points of CL-Detection 2023, references and predictions: 38 landmarks per image."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semi.errors import Problem, UserError, cause_of
from nnunet_semi.raw import name_some

NAMES = tuple(str(number) for number in range(1, 39))


@dataclass(frozen=True)
class Cephalogram:
    """The landmarks of one image.

    Attributes:
        points: (x, y) in pixels, in the order of `NAMES`; None for a missing one.
        scale: mm per pixel; NaN in a list of predictions, which states none.
    """

    points: tuple[tuple[float, float] | None, ...]
    scale: float


@dataclass(frozen=True)
class _Entry:
    """One item of the list."""

    name: str
    x: float
    y: float
    image: int
    scale: float


def read_points(
    path: Path, size: tuple[int, ...] | None = None, scaled: bool = True
) -> tuple[dict[int, Cephalogram], list[Problem]]:
    """The images that have landmarks, by their number from 1, and everything that is wrong with the list.

    Args:
        path: a JSON file; `name` may be a number or a string, `scale` too.
        size: of the stack: width, height and number of images; None where it is not known.
        scaled: whether every point has to state a scale, as those of a reference do.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return {}, [Problem(path, f"no JSON ({cause_of(error)})", "an object with a list `points`")]
    items = content.get("points") if isinstance(content, dict) else None
    if not isinstance(items, list) or not items:
        return {}, [Problem(path, "JSON without a list `points`", 'items as {"name": 1, "point": [x, y, image]}')]
    problems: list[Problem] = []
    images: dict[int, list[_Entry]] = defaultdict(list)
    for position, item in enumerate(items, 1):
        try:
            entry = _entry(item, size, scaled)
        except (ValueError, KeyError) as error:
            reason = f"without {error}" if isinstance(error, KeyError) else f"with {error}"
            problems.append(Problem(path, f"point {position} {reason}", "name, point [x, y, image] and scale"))
        else:
            images[entry.image].append(entry)
    missing = [str(number) for number in range(1, size[2] + 1) if number not in images] if size else []
    if missing:
        problems.append(Problem(path, f"no points in image {name_some(missing, 5)}", "some in every image"))
    found = {}
    for number, entries in images.items():
        wrong = _contradictions(entries)
        problems += [Problem(path, f"image {number} with {reason}", "one scale, each name once") for reason in wrong]
        if not wrong:
            points = {entry.name: (entry.x, entry.y) for entry in entries}
            scale = entries[0].scale if scaled else math.nan
            found[number] = Cephalogram(tuple(points.get(name) for name in NAMES), scale)
    return found, problems


def points_as_json(images: Sequence[Sequence[tuple[float, float] | None]]) -> dict[str, Any]:
    """The contents of orthodontic-landmarks.json, as the challenge wants predictions.

    Args:
        images: for each image of the stack its landmarks (x, y) in pixels, in the order of `NAMES`; a missing one
            (None) is left out.

    Raises:
        UserError: a coordinate is NaN or infinite, which JSON cannot hold.
    """
    for number, landmarks in enumerate(images, 1):
        for name, point in zip(NAMES, landmarks, strict=True):
            if point is not None and not all(map(math.isfinite, point)):
                raise UserError(
                    f"landmark {name} of image {number} was found at {tuple(point)}; expected numbers, as the "
                    "challenge wants all landmarks; predict with another checkpoint, or with -device cpu"
                )
    points = [
        {"name": name, "point": [float(point[0]), float(point[1]), number]}
        for number, landmarks in enumerate(images, 1)
        for name, point in zip(NAMES, landmarks, strict=True)
        if point is not None
    ]
    return {
        "name": "Orthodontic landmarks",
        "type": "Multiple points",
        "points": points,
        "version": {"major": 1, "minor": 0},
    }


def _entry(item: Any, size: tuple[int, ...] | None, scaled: bool) -> _Entry:
    """One item of the list; raises ValueError with what is wrong about it, or KeyError with what it lacks."""
    try:
        name = str(item["name"]).strip()
        x, y, image = (float(value) for value in item["point"])
        scale = float(item["scale"]) if scaled else 0.0
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"the entry {repr(item)[:200]}") from None
    if name not in NAMES:
        raise ValueError(f"the name {name!r}, not 1 to {len(NAMES)}")
    if scaled and not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"the scale {item['scale']!r}")
    if not image.is_integer() or image < 1 or (size and image > size[2]):
        raise ValueError(f"the image {image:g}" + (f" of {size[2]}" if size else ""))
    if size and not (-0.5 <= x < size[0] - 0.5 and -0.5 <= y < size[1] - 0.5):
        raise ValueError(f"the position ({x:g}, {y:g}) outside of {size[0]} × {size[1]} pixels")
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"the position ({x:g}, {y:g})")
    return _Entry(name, x, y, int(image), scale)


def _contradictions(entries: list[_Entry]) -> list[str]:
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1}, key=int)
    scales = sorted({entry.scale for entry in entries})
    reasons = [f"{name_some(twice)} more than once"] if twice else []
    return reasons + ([f"the scales {name_some(map(str, scales))}"] if len(scales) > 1 else [])
