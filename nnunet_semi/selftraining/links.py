"""Files that two datasets share: links where the file system has them, copies where it has not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from nnunet_semi.storage import atomic_path


def share(source: Path, target: Path) -> None:
    """Lets `target` be the file `source` under a second name; does nothing where `target` exists.

    A hard link, which costs no space and stays whole when `source` is deleted or written anew. A symbolic link where
    that is refused: between file systems, or for files of another user. A copy where there is neither.
    """
    if target.exists():
        return
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except FileExistsError:
        return
    except OSError:
        if not _link(real, target):
            with atomic_path(target) as temporary:
                shutil.copyfile(real, temporary)


def share_files(source: Path, target: Path, names: Iterable[str] | None = None) -> None:
    """Lets the folder `target` hold the files of the folder `source`, or those of these names; hidden ones stay out."""
    target.mkdir(parents=True, exist_ok=True)
    with os.scandir(source) as entries:
        files = {entry.name for entry in entries if entry.is_file() and not entry.name.startswith(".")}
    for name in sorted(files if names is None else files.intersection(names)):
        share(source / name, target / name)


def point_to(source: Path, target: Path) -> None:
    """Makes `target` a symbolic link to the file or folder `source`; does nothing where `target` is one already.

    Where there are no symbolic links the files are shared.
    """
    if target.exists() or _link(os.path.realpath(source), target):
        return
    if source.is_dir():
        share_files(source, target)
    else:
        share(source, target)


def _link(real: str, target: Path) -> bool:
    """Makes a symbolic link, relative so that it survives when both are moved together; False where it cannot be."""
    target.unlink(missing_ok=True)  # a link to what is gone
    try:
        target.symlink_to(
            os.path.relpath(real, os.path.realpath(target.parent)), target_is_directory=os.path.isdir(real)
        )
    except (OSError, ValueError):  # ValueError: another drive
        return False
    return True
