"""Branches: datasets that share the images, plans and preprocessed cases of another one (selftraining/branch.py)."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nnunet_semi.raw import RAW

MARK = "branch.json"  # in the raw dataset: {"branch_of": "Dataset007_Heart"}


def original_of(dataset: str) -> str:
    """The dataset that `dataset` is a branch of; itself where it is none, or raw data is not at hand."""
    try:
        content = json.loads(Path(os.environ[RAW], dataset, MARK).read_text(encoding="utf-8"))
        return str(content["branch_of"])
    except (KeyError, OSError, ValueError, TypeError):
        return dataset
