"""Where a dataset goes: its id, its name, and what must not be overwritten."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from nnunet_semi import raw
from nnunet_semi.errors import WrongUse

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MOST_IDS = 1000
GROWING = ".converting"  # the ending of the hidden folder in which a dataset grows


def choose_target(dataset_id: int | None, name: str, overwrite: bool) -> Path:
    """The folder of a dataset that may be written.

    Args:
        dataset_id: None stands for that of a dataset with this name, or else the first free one.
        name: the part of the folder's name after the id.
        overwrite: whether a dataset of this name may be replaced.

    Raises:
        WrongUse: the id belongs to another dataset, the name is none, or the dataset exists.
        EnvironmentNotReady: nnUNet_raw is missing.
    """
    folder = raw.nnunet_folder(raw.RAW)
    if not NAME.fullmatch(name):
        raise WrongUse(f"got the name {name!r}; expected letters, digits, '_', '-' and '.'; choose another with --name")
    number = _own_id(folder, name) if dataset_id is None else dataset_id
    if number is None:
        begun = [entry for entry in os.listdir(folder) if entry.endswith(GROWING)]
        taken = {int(match[1]) for entry in begun if (match := re.match(r"\.Dataset(\d+)_", entry))}
        number = next(free for free in range(1, MOST_IDS) if free not in taken and not _names_with(free))
    if number < 1:
        raise WrongUse(f"got the id {number}; expected 1 or more; choose another with --id")
    target = folder / f"Dataset{number:03d}_{name}"
    others = [other for other in _names_with(number) if other != target.name]
    if others:
        raise WrongUse(f"the id {number} belongs to {raw.name_some(others)}; choose another with --id")
    free = not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir()))
    if not free and not overwrite:
        raise WrongUse(f"{target} exists already; replace it with --overwrite, or choose another --id or --name")
    return target


def _names_with(number: int) -> list[str]:
    """Datasets in all of nnU-Net's folders that it would take for that of an id."""
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    return [str(name) for name in find_candidate_datasets(number)]


def _own_id(folder: Path, name: str) -> int | None:
    """The id of a dataset of this name that exists, or whose conversion was interrupted."""
    found = re.compile(rf"\.?Dataset(\d+)_{re.escape(name)}({re.escape(GROWING)})?")
    matches = [found.fullmatch(entry) for entry in sorted(os.listdir(folder))]
    return next((int(match[1]) for match in matches if match), None)


def refuse_overlap(target: Path, sources: Iterable[Path]) -> None:
    """Raises `WrongUse` where a source lies in the dataset that would be written, or replaced."""
    real = target.resolve()
    for source in sources:
        if source.resolve().is_relative_to(real):
            raise WrongUse(f"{source} lies in the dataset {target} that would be written; move the source elsewhere")
