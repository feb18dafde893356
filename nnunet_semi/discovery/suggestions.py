"""Which trainer may have been meant: the nearest names, read from file names without importing anything."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path

from nnunet_semi.registry import TRAINERS

SUFFIXES = "_Nepochs, _Miters, _seedK, _nomirror"
_CLASS = re.compile(r"^class\s+(\w*Trainer\w*)\s*\(", re.MULTILINE)


def nnunet_trainer_names() -> list[str]:
    """Names of the trainer classes in the installed nnunetv2; empty where it is not installed."""
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(spec.submodule_search_locations[0], "training", "nnUNetTrainer")
    return sorted({n for f in folder.rglob("*.py") for n in _CLASS.findall(f.read_text(encoding="utf-8"))})


def nearest_names(name: str, count: int = 3) -> list[str]:
    """At most `count` known trainer names that look like `name`, the nearest first; upper and lower case count."""
    return difflib.get_close_matches(name, [*TRAINERS, *nnunet_trainer_names()], count, cutoff=0.75)


def hint(name: str) -> str:
    """What may have been meant by a trainer name that nobody knows."""
    near = nearest_names(name)
    return f"did you mean {' or '.join(near)}?" if near else "`nnunet_semi list` shows the names."


def explain_unknown(name: str) -> str:
    """One sentence on a trainer name that nobody knows."""
    endings = f" Endings are {SUFFIXES}." if "_" in name else ""
    return f"it knows no trainer {name}; {hint(name)}{endings}"
