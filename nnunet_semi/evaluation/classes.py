"""Which labels and regions are scored, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.evaluation.overlap import Label, members
from nnunet_semi.raw import load_json


@dataclass(frozen=True)
class Classes:
    """What is scored.

    Attributes:
        names: label or region → name; None scores every label that occurs, 0 excepted.
        ignore: voxels with this label in the reference do not count.
        source: where this was taken from, in words.
        known: every label that a file may hold, background included; empty if that is not known.
    """

    names: Mapping[Label, str] | None = None
    ignore: int | None = None
    source: str = "all labels that occur"
    known: frozenset[int] = field(default_factory=frozenset)


def find_classes(reference: Path, prediction: Path, labels: Sequence[Label] | None = None) -> Classes:
    """The classes of two folders: those of a dataset.json beside them, of which `labels` may choose.

    dataset.json is looked for in the folder of the reference, beside it (as in nnUNet_raw, where it is labelsTr), and
    in the folder of the prediction, where nnU-Net puts one.

    Raises:
        WrongUse: `labels` holds a label twice, or 0.
        UserError: dataset.json cannot be read, or its labels are not as nnU-Net wants them.
    """
    candidates = (reference, reference.parent, prediction)
    found = next((folder / "dataset.json" for folder in candidates if (folder / "dataset.json").is_file()), None)
    classes = classes_of(found) if found else Classes()
    if labels is None:
        return classes
    if len(set(labels)) < len(labels) or 0 in labels or not labels:
        raise WrongUse(f"got the labels {list(labels)}; expected labels above 0 and regions such as 1,2, each once")
    names = {label: (classes.names or {}).get(label, "") for label in labels}
    return Classes(names, classes.ignore, "the labels asked for", classes.known)


def classes_of(dataset_json: Path) -> Classes:
    """The classes of a dataset.json: its regions if it has any, else its labels; never background or ignore."""
    declared = load_json(dataset_json).get("labels")
    try:
        values = {str(name): _label(value) for name, value in dict(declared or {}).items()}
    except (TypeError, ValueError):
        values = {}
    if not values:
        raise UserError(
            f"the labels in {dataset_json} are {declared!r}; expected names with numbers or lists of numbers, such as "
            '{"background": 0, "lesion": 1}; correct it, or choose with -l'
        )
    ignore = values.pop("ignore", None)
    known = {number for value in values.values() for number in members(value)}
    names = {value: name for name, value in values.items() if set(members(value)) != {0}}
    return Classes(names, ignore if isinstance(ignore, int) else None, str(dataset_json), frozenset(known))


def _label(value: Any) -> Label:
    if isinstance(value, list | tuple):
        region = tuple(int(number) for number in value)
        return region[0] if len(region) == 1 else region
    return int(value)


def parse_label(text: str) -> Label:
    """A label such as 2, or a region such as 1,2,3, as given on the command line."""
    return _label(text.split(","))
