"""How nnU-Net finds the trainers: one folder in nnUNet_extTrainer, and a look-up by class name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nnunet_semi.registry import TRAINERS

VARIABLE = "nnUNet_extTrainer"


def hook_folder() -> Path:
    """The folder that nnUNet_extTrainer must contain; it holds the shim and nothing else."""
    return Path(__file__).resolve().parent / "shim"


def search_path() -> list[str]:
    """The folders in nnUNet_extTrainer, in nnU-Net's order."""
    return [folder for folder in os.environ.get(VARIABLE, "").split(os.pathsep) if folder.strip()]


def extended_search_path() -> str:
    """The value of nnUNet_extTrainer with the shim's folder in it; the user's own folders stay in front."""
    folders = search_path()
    return os.pathsep.join(folders if str(hook_folder()) in folders else [*folders, str(hook_folder())])


def find_trainer(name: str) -> type:
    """The trainer class of that name: registered, or a variant such as nnUNetTrainerCPS_100epochs_seed3.

    Raises:
        AttributeError: there is none; what may have been meant is printed to stderr, since nnU-Net asks with hasattr.
    """
    if not name.startswith("__"):  # which the import system asks of any module
        from nnunet_semi.discovery.suggestions import explain_unknown
        from nnunet_semi.discovery.variants import NotAVariant, registered, variant

        try:
            return registered(name) if name in TRAINERS else variant(name)
        except NotAVariant as problem:
            print(f"nnunet_semi: {str(problem) or explain_unknown(name)}", file=sys.stderr)
    raise AttributeError(f"nnunet_semi has no trainer {name!r}")
