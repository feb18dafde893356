"""The three folders that nnU-Net asks for, and the lines that tell it where they are."""

from __future__ import annotations

import os
from pathlib import Path

from nnunet_semi.errors import UserError, cause_of
from nnunet_semi.raw import FOLDERS
from nnunet_semi.shells import set_line

_TITLES = {"bash": "bash, zsh", "powershell": "PowerShell", "cmd": "cmd"}


def init(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Makes nnU-Net's three folders inside `folder`; those that exist already stay as they are.

    Returns:
        The absolute path of each, by the name of the environment variable that must hold it.

    Raises:
        UserError: a folder cannot be made there.
    """
    root = Path(folder).expanduser().absolute()
    paths = {name: root / name for name in FOLDERS}
    for path in paths.values():
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(
                f"{path} cannot be made a folder ({cause_of(problem)}); give a folder you may write to."
            ) from problem
    return paths


def instructions(paths: dict[str, Path]) -> str:
    """What to type so that nnU-Net sees the folders: now, for three shells, and in every new shell."""
    blocks = []
    for shell, title in _TITLES.items():
        lines = [set_line(name, str(path), shell) for name, path in paths.items()]
        blocks.append("\n".join([f"{title}:", *(f"  {line}" for line in lines)]))
    return "\n\n".join([*blocks, _PERMANENT])


_PERMANENT = """\
This holds in the shell in which you type it. For every new shell:
  bash, zsh    add the lines to ~/.bashrc or ~/.zshrc
  PowerShell   add the lines to the file that $PROFILE names
  cmd          setx nnUNet_raw "FOLDER", and so on, once; new windows see it
Then `nnunet_semi doctor` says whether everything is in place."""


def differing(paths: dict[str, Path]) -> list[str]:
    """A sentence for each variable that points elsewhere in the present environment."""
    found = {name: os.environ.get(name) for name in paths}
    return [
        f"{name} is {value} in this shell; the lines above change it."
        for name, value in found.items()
        if value and Path(value).absolute() != paths[name]
    ]
