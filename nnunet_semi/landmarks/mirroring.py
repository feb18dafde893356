"""Left and right: which landmarks change places when an image is mirrored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_semi.errors import UserError

AXES = {"x": 2, "y": 1, "z": 0}


@dataclass(frozen=True)
class Mirroring:
    """A symmetry of the body.

    Attributes:
        axis: of a patch (from 0, after nnU-Net's transpose, without the channels) along which images may be mirrored.
        order: the landmark that each landmark becomes, counted from 0: `points[order]`, `heatmaps[:, order]`.
    """

    axis: int
    order: tuple[int, ...]


def mirroring(dataset_json: Mapping[str, Any], transpose_forward: Sequence[int], dim: int) -> Mirroring | None:
    """What dataset.json allows, or None: {"landmarks": {"left_right": [["left eye", "right eye"], …], "axis": "x"}}.

    Landmarks that are in no pair lie in the middle and keep their places. The axis is x if not given.

    Args:
        dim: of the patches, 2 or 3.

    Raises:
        UserError: another form, a name that is no label, a name in two pairs, or an axis that patches do not have.
    """
    described = dataset_json.get("landmarks") or {}
    if not isinstance(described, Mapping):
        raise UserError(
            f"dataset.json has {described!r} as 'landmarks'; expected an object such as "
            '{"left_right": [["left eye", "right eye"]], "axis": "x"}; correct it, or leave it out'
        )
    pairs = described.get("left_right")
    if not pairs:
        return None
    names = landmark_names(dataset_json)
    listed = isinstance(pairs, (list, tuple)) and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs)
    flat = [name for pair in pairs for name in pair] if listed else []
    wrong = [name for name in flat if name not in names or flat.count(name) > 1]
    if wrong or not listed:
        raise UserError(
            f"dataset.json has {pairs} as 'left_right' of 'landmarks'; expected pairs of its labels, each label once "
            f"at most{f'; correct {wrong[0]!r}' if wrong else ''}"
        )
    partner = {**{a: b for a, b in pairs}, **{b: a for a, b in pairs}}
    letter = described.get("axis", "x")
    known = isinstance(letter, str) and letter in AXES
    axis = list(transpose_forward).index(AXES[letter]) - (3 - dim) if known else -1
    if axis < 0:
        raise UserError(
            f"dataset.json has {letter!r} as 'axis' of 'landmarks'; expected x, y or z, an axis of the image"
        )
    return Mirroring(axis, tuple(names.index(partner.get(name, name)) for name in names))


def landmark_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """The labels without the background, in the order of the network's outputs 1, 2, …

    Raises:
        UserError: regions, an ignore label, or labels that are not 0, 1, 2, …
    """
    labels = dict(dataset_json["labels"])
    names = sorted((name for name in labels if labels[name] != 0), key=lambda name: str(labels[name]))
    if all(isinstance(value, int) for value in labels.values()):
        names.sort(key=lambda name: labels[name])
    if "ignore" in labels or [labels[name] for name in names] != list(range(1, len(names) + 1)):
        raise UserError(
            f"dataset.json has the labels {labels}; expected background 0 and one label 1, 2, … for each landmark, "
            "without regions and without 'ignore' (a missing landmark has null in its case's landmarks file)"
        )
    return names
