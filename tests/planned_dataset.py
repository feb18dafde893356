"""Planned datasets whose unlabeled cases are still to be preprocessed, and what tests do to them.

A test module imports the fixtures that it uses, and `planned` with them, by `import flat as flat`: the repeated name
tells ruff that the import is meant.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semi.unlabeled import preprocessing
from nnunet_semi.unlabeled.index import UnlabeledIndex
from nnunet_semi.unlabeled.preprocessing import ensure_preprocessed, preprocess_unlabeled
from small_dataset import environment, make_dataset, plan

NAME = "Dataset001_Tiny"
SPACING = (3.0, 1.0, 1.0)
CASES = [f"un_{number:03d}" for number in range(4)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Dimension → root of a dataset that nnU-Net planned and preprocessed: 2D png, anisotropic 3D of 2 channels."""
    roots = {}
    for dimension, settings in {2: {}, 3: {"channels": 2, "shape": (6, 24, 28), "spacing": SPACING}}.items():
        root = tmp_path_factory.mktemp(f"planned{dimension}d")
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in environment(root).items():
                patch.setenv(variable, value)
            make_dataset(root, dimension, labeled=3, unlabeled=4, test=0, **settings)
            plan(1, ("2d", "3d_fullres"))
        roots[dimension] = root
    return roots


class Dataset:
    """A planned dataset that a test may change, with short names for what tests do to it."""

    def __init__(self, root: Path) -> None:
        self.raw = root / "nnUNet_raw" / NAME
        self.images = self.raw / "imagesUn"
        self.preprocessed = root / "nnUNet_preprocessed" / NAME
        self.log: list[str] = []

    @property
    def plans(self) -> dict[str, Any]:
        return json.loads((self.preprocessed / "nnUNetPlans.json").read_text())

    def change_plans(self, change: Callable[[dict[str, Any]], Any]) -> None:
        plans = self.plans
        change(plans)
        (self.preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))

    def folder(self, configuration: str = "2d") -> Path:
        return self.preprocessed / f"nnUNetPlans_{configuration}_unlabeled"

    def index(self, configuration: str = "2d") -> UnlabeledIndex:
        return UnlabeledIndex.load(f"{self.folder(configuration)}.jsonl")

    def run(self, configuration: str = "2d", **arguments: Any) -> preprocessing.IdentifierSummary:
        [summary] = preprocess_unlabeled(
            1, [configuration], **{"num_processes": 1, "log": self.log.append, **arguments}
        ).identifiers
        return summary

    def start_training(self, configuration: str = "2d", **arguments: Any) -> UnlabeledIndex:
        dataset_json = json.loads((self.preprocessed / "dataset.json").read_text())
        manager = PlansManager(self.plans)
        return ensure_preprocessed(
            manager, configuration, dataset_json, **{"num_processes": 1, "log": self.log.append, **arguments}
        )

    def state(self) -> dict[str, int]:
        """Everything in nnUNet_preprocessed with its time of change."""
        files = (path for path in self.preprocessed.rglob("*") if path.suffix != ".lock" and path.is_file())
        return {str(path.relative_to(self.preprocessed)): path.stat().st_mtime_ns for path in files}


def copy_of(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    shutil.copytree(root, tmp_path / "data")
    for variable, value in environment(tmp_path / "data").items():
        monkeypatch.setenv(variable, value)
    return Dataset(tmp_path / "data")


@pytest.fixture
def flat(planned: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """2D png, one channel, unlabeled cases un_000 to un_003."""
    return copy_of(planned[2], tmp_path, monkeypatch)


@pytest.fixture
def volumes(planned: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """3D .nii.gz, two channels, slices 3 mm apart, unlabeled cases un_000 to un_003."""
    return copy_of(planned[3], tmp_path, monkeypatch)


@pytest.fixture(params=[(2, "2d"), (3, "2d"), (3, "3d_fullres")], ids=lambda value: f"{value[1]}-of-{value[0]}D")
def dataset_and_configuration(
    request: pytest.FixtureRequest, planned: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Dataset, str]:
    """Every kind of preprocessing."""
    dimension, configuration = request.param
    return copy_of(planned[dimension], tmp_path, monkeypatch), configuration


def load(folder: Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    data, seg, _, _ = nnUNetDatasetBlosc2(str(folder)).load_case(case)
    return data[:], seg[:]
