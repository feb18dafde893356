"""Facts on nnU-Net's three folders: set, existing, writable, quoted by accident, with room left."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from nnunet_semi.doctor.fact import Fact, Status
from nnunet_semi.errors import EnvironmentNotReady, cause_of
from nnunet_semi.raw import FOLDERS, nnunet_folder


def folders() -> list[Fact]:
    """What `folder` says of each of the three."""
    return [fact for variable in FOLDERS for fact in folder(variable)]


def folder(variable: str) -> list[Fact]:
    """The first thing wrong with the folder that `variable` names, or that all is well."""
    try:
        value = str(nnunet_folder(variable))
    except EnvironmentNotReady as problem:
        text, _, remedy = str(problem).partition("; ")
        return [Fact(variable, "FAIL", text, remedy)]
    return [_writable(variable, value), *_room(variable, value)]


def _writable(variable: str, value: str) -> Fact:
    """Writes an empty file and removes it: permissions alone do not tell of read-only file systems."""
    probe = Path(value, f".nnunet_semi_{uuid.uuid4().hex}")
    try:
        probe.touch()
        probe.unlink()
    except OSError as problem:
        # raw data often lies on a read-only share, and only converters write there
        status: Status = "warn" if variable == "nnUNet_raw" else "FAIL"
        use = "fine for training" if status == "warn" else "training writes here"
        return Fact(variable, status, f"{value} is not writable: {cause_of(problem)}; {use}", "change its permissions")
    return Fact(variable, "ok", value)


def _room(variable: str, value: str) -> list[Fact]:
    """Free space, for the two folders that grow."""
    if variable == "nnUNet_raw":
        return []
    free = shutil.disk_usage(value).free / 1e9
    if free >= 20:
        return [Fact("disk", "ok", f"{free:.0f} GB free in {variable}")]
    remedy = "free some, or move the folder to another disk"
    return [Fact("disk", "warn" if free >= 2 else "FAIL", f"{free:.1f} GB free in {variable}", remedy)]


FOLDER_FACTS: list[Callable[[], list[Fact]]] = [folders]
