"""Files that are either there whole or not there at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path`, which becomes `path` when the block ends well and is removed otherwise.

    The temporary file exists, empty, when the block starts. Its name begins with a dot, so that a listing can tell
    what a killed process left behind, and keeps the ending of `path`, because many writers choose their format by it.
    Until the block has ended, a file already at `path` stays as it was. A link is followed, as `open` would.

    Raises:
        OSError: the folder of `path` is missing or cannot be written to.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(4)}_{target.name}")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike[str], *names: str) -> None:
    """Removes what killed processes left behind in a folder while they wrote files of these names by `atomic_path`.

    Args:
        names: of the files that were to be, with * and ? as in `Path.glob`; nothing else is touched.
    """
    for name in names:
        for leftover in Path(folder).glob(f".{'[0-9a-f]' * 8}_{name}"):
            leftover.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes `content` as nnU-Net writes its JSON files (four blanks of indent), atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4), encoding="utf-8")
