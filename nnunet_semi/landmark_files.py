"""The file that holds a case's landmarks: landmarksTr/CASE.json, and what predictions are written as.

{"size": [x, y(, z)], "spacing": …, "origin": …, "direction": …, "landmarks":
[{"name": "sella", "label": 1, "voxel": [x, y(, z)], "world": [x, y(, z)]}, …]}

`direction` may be left out where it is the identity. A missing landmark has null for both coordinates; where only one
of the two is there, the other follows from it. Predictions hold further numbers per landmark, such as a probability.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_semi.errors import UserError
from nnunet_semi.geometry import Geometry
from nnunet_semi.raw import load_json, name_some
from nnunet_semi.storage import write_json

DECIMALS = 6  # of coordinates in files
LEAST_VOLUME = 1e-6  # that the axes of an image span; 1 where they are at right angles
AGREEMENT = 0.05  # voxels by which `voxel` and `world` of a file may differ


@dataclass(frozen=True)
class Landmarks:
    """The landmarks of one case.

    Attributes:
        names: in the order of the labels 1, 2, …
        voxel: (L, dim) float64, in array order (z, )y, x, whole numbers at voxel centres, NaN for missing ones; may
            lie outside of the image.
        geometry: of the image.
        details: further numbers per landmark, each (L,), NaN where there is none.
    """

    names: tuple[str, ...]
    voxel: np.ndarray
    geometry: Geometry
    details: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, points: Mapping[str, Sequence[float] | None], geometry: Geometry) -> Landmarks:
        """From name → voxel coordinates x, y(, z), None for a missing one; in the order of the labels 1, 2, …"""
        missing = (np.nan,) * geometry.dim
        voxel = np.array([missing if point is None else point for point in points.values()], float)
        return cls(tuple(points), voxel.reshape(len(points), geometry.dim)[:, ::-1], geometry)

    @property
    def world(self) -> np.ndarray:
        """(L, dim) in mm, in the order x, y(, z); NaN for missing ones."""
        return self.geometry.world(self.voxel)

    @property
    def in_image(self) -> Landmarks:
        """The same, with those outside of the image missing: there, none can be found."""
        inside = ((self.voxel > -0.5) & (self.voxel < np.array(self.geometry.shape) - 0.5)).all(axis=1, keepdims=True)
        return replace(self, voxel=np.where(inside, self.voxel, np.nan))


def read(path: Path) -> Landmarks:
    """The landmarks of a file.

    Raises:
        UserError: it is not of the form above; the sentence says where.
    """
    content = load_json(Path(path))
    geometry = _geometry(path, content)
    entries = content.get("landmarks")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} has no list 'landmarks' of objects; expected one entry for each landmark; correct it")
    names = [entry.get("name") for entry in entries]
    labels = [entry.get("label") for entry in entries]
    if labels != list(range(1, len(entries) + 1)):
        raise UserError(f"{path} has the labels {labels}; expected 1, 2, … in this order, as in dataset.json; sort it")
    if len(set(map(str, names))) < len(names) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} has the names {names}; expected a different name for each landmark; correct it")
    voxel = np.array([_voxel(path, entry, geometry) for entry in entries]).reshape(len(entries), geometry.dim)
    return Landmarks(tuple(map(str, names)), voxel, geometry, _details(entries))


def write(path: Path, landmarks: Landmarks) -> None:
    """Writes a file that `read` gives back, whole or not at all."""
    write_json(path, as_json(landmarks))


def as_json(landmarks: Landmarks) -> dict[str, Any]:
    """What the file holds."""
    geometry = landmarks.geometry
    entries = []
    for index, name in enumerate(landmarks.names):
        entry: dict[str, Any] = {"name": name, "label": index + 1}
        entry["voxel"] = _numbers(landmarks.voxel[index, ::-1])
        entry["world"] = _numbers(landmarks.world[index])
        for key, values in landmarks.details.items():
            entry[key] = None if np.isnan(values[index]) else float(values[index])
        entries.append(entry)
    fields = ("size", "spacing", "origin", "direction")
    return {**{name: list(getattr(geometry, name)) for name in fields}, "landmarks": entries}


def check_names(path: Path, names: Sequence[str], expected: Sequence[str]) -> None:
    """Refuses a file whose landmarks are not those of dataset.json.

    Raises:
        UserError: other names, or in another order.
    """
    if list(names) == list(expected):
        return
    missing = [name for name in expected if name not in names]
    unknown = [name for name in names if name not in expected]
    found = f"lacks {name_some(missing)}" if missing else f"has {name_some(unknown)} besides"
    if not missing and not unknown:
        found = "has them in another order"
    raise UserError(
        f"the landmarks of {path} are not the labels of dataset.json: the file {found}; expected all of them in the "
        "order of their labels, with null for the coordinates of a missing one"
    )


def _geometry(path: Path, content: dict[str, Any]) -> Geometry:
    lengths: dict[str, int] = {}
    for name in ("size", "spacing", "origin", "direction"):
        values: Any = content.get(name)
        if values is None and name in ("origin", "direction"):
            continue
        if not _are_numbers(values):
            raise UserError(f"{path} has {values!r} as {name!r}; expected a list of numbers, x first; correct it")
        lengths[name] = len(values)
    dim = lengths["size"]
    expected = {"size": dim, "spacing": dim, "origin": dim, "direction": dim * dim}
    wrong = [name for name, length in lengths.items() if length != expected[name] or dim not in (2, 3)]
    if wrong:
        raise UserError(f"{path} has {lengths[wrong[0]]} numbers in {wrong[0]!r}; expected 2 or 3 axes in all fields")
    _check_grid(path, content["size"], content["spacing"])
    geometry = Geometry.of(*(content.get(name) for name in expected))
    if not abs(np.linalg.det(np.reshape(geometry.direction, (dim, dim)))) > LEAST_VOLUME:
        raise UserError(
            f"{path} has the 'direction' {content['direction']}, whose axes do not span the image; expected that of "
            "the image, or none where the axes are not rotated; correct it"
        )
    return geometry


def _check_grid(path: Path, size: list[float], spacing: list[float]) -> None:
    if min(size) < 1 or min(spacing) <= 0:
        raise UserError(f"{path} has a size or a spacing that is not positive; correct it")
    if any(number != int(number) for number in size):
        raise UserError(f"{path} has the 'size' {size}; expected whole numbers of voxels, x first; correct it")


def _voxel(path: Path, entry: dict[str, Any], geometry: Geometry) -> np.ndarray:
    """The voxel coordinates of one entry in array order, from either field."""
    voxel, world = (_point(path, entry, name, geometry.dim) for name in ("voxel", "world"))
    from_world = geometry.voxel(world[None])[0]
    if np.isnan(voxel).any():
        return from_world
    if np.abs(from_world - voxel[::-1]).max() > AGREEMENT:  # False where there is no world
        raise UserError(
            f"{path} places {entry.get('name')!r} at voxel {entry['voxel']} and at world {entry['world']}, which is "
            f"voxel {[round(float(x), 2) for x in from_world[::-1]]}; remove the field that is wrong"
        )
    return voxel[::-1]


def _point(path: Path, entry: dict[str, Any], name: str, dim: int) -> np.ndarray:
    values = entry.get(name)
    if values is None:
        return np.full(dim, np.nan)
    if not _are_numbers(values) or len(values) != dim:
        raise UserError(
            f"{path} has {values!r} as {name!r} of {entry.get('name')!r}; expected {dim} numbers, x first, or null for "
            "a missing landmark"
        )
    return np.array(values, float)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(_is_number(value) and math.isfinite(value) for value in values)


def _is_number(value: Any) -> bool:
    """Whether a float can hold it; 10**400, which JSON allows, is none for us."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _details(entries: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The further fields that are numbers in every entry that has them."""
    found = {}
    keys = dict.fromkeys(key for entry in entries for key in entry if key not in ("name", "label", "voxel", "world"))
    for key in keys:
        values = [entry.get(key) for entry in entries]
        if all(value is None or _is_number(value) for value in values):
            found[key] = np.array([np.nan if value is None else value for value in values], float)
    return found


def _numbers(values: np.ndarray) -> list[float] | None:
    return None if np.isnan(values).any() else [round(float(value), DECIMALS) for value in values]
