"""A self-training that has begun, and the tiny dataset of its own that it works on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_semi.selftraining.folder import RunFolder
from nnunet_semi.selftraining.settings import Settings
from small_dataset import environment

BASE = "Dataset001_Tiny"
TRAINER = "nnUNetTrainerKeepCheckpoints"
SETTINGS = Settings(
    dataset=BASE,
    configuration="2d",
    plans="nnUNetPlans",
    fold=0,
    rounds=2,
    trainers=["T_3epochs", "T_2epochs", "T_2epochs"],
    first=["top:.5"],
    later=["threshold:.9", "complete"],
    by="checkpoints",
    checkpoint="checkpoint_final.pth",
    warm_start=False,
    stop_early=False,
    skip_bad=False,
)


@pytest.fixture
def own(tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Gives the root of a copy of a tiny dataset that a test may change."""

    def make(**settings: Any) -> Path:
        shutil.copytree(tiny(**settings).parents[2], tmp_path / "own")
        for name, value in environment(tmp_path / "own").items():
            monkeypatch.setenv(name, value)
        (tmp_path / "own" / "nnUNet_results").mkdir(exist_ok=True)
        return tmp_path / "own"

    return make


def begun(path: Path, settings: Settings = SETTINGS) -> RunFolder:
    run = RunFolder(path, settings, [2, 3], 0)
    path.mkdir(exist_ok=True)
    run.write()
    return run
