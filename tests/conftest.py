"""What all tests share: the copy under test is this checkout, and no test sees the user's own nnU-Net folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported: one thread each, so that subprocesses and workers do not fight for the cores.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "nnUNet_n_proc_DA": "1", "MPLBACKEND": "Agg"})
for _folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.pop(_folder, None)

import pytest  # noqa: E402

import nnunet_semi  # noqa: E402
from nnunet_semi.discovery import hook_folder, search_path  # noqa: E402
from small_dataset import environment, make_dataset, plan  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Stops where the commands started by the tests would run another copy than the one in this checkout."""
    imported = Path(nnunet_semi.__file__).resolve().parent
    shims = [Path(entry) for entry in search_path() if Path(entry, "nnunet_semi_trainers.py").is_file()]
    if imported != ROOT / "nnunet_semi" or shims != [hook_folder()]:
        hooks = ", ".join(map(str, shims)) or "nothing"
        pytest.exit(
            f"the tests are those of {ROOT}, but Python imports {imported} and nnU-Net's commands find {hooks}; "
            f"run `pip install -e '.[dev]'` in {ROOT}",
            returncode=3,
        )


@pytest.fixture(scope="session")
def _tiny_datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plans files of the tiny datasets that were made so far, by what was asked for."""
    return {"": tmp_path_factory.mktemp("tiny")}


@pytest.fixture
def tiny(_tiny_datasets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Makes a tiny dataset once per session, preprocessed with its unlabeled cases, and gives its plans file.

    Takes the arguments of `make_dataset` and `plan`. Results go to a folder of the test.
    """

    def make(configurations: tuple[str, ...] = ("2d",), **dataset: Any) -> Path:
        key = repr((configurations, sorted(dataset.items())))
        root = _tiny_datasets[""] / str(abs(hash(key)))
        for name, value in {**environment(root), "nnUNet_results": str(tmp_path / "nnUNet_results")}.items():
            monkeypatch.setenv(name, value)
        if key not in _tiny_datasets:
            make_dataset(root, **dataset)
            _tiny_datasets[key] = plan(dataset.get("dataset_id", 1), configurations)
            from nnunet_semi.unlabeled.preprocessing import preprocess_unlabeled

            preprocess_unlabeled(dataset.get("dataset_id", 1), configurations, num_processes=1, progress=False)
        return _tiny_datasets[key]

    return make


@pytest.fixture
def tiny_2d(tiny: Callable[..., Path]) -> Path:
    """The plans file of the default tiny dataset: 2D, 6 labeled and 4 unlabeled cases, two classes."""
    return tiny()
