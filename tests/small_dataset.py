"""Tiny nnU-Net datasets for the tests: generated, image-like, planned by nnU-Net itself within a second.

With `environment(tmp_path)` in os.environ (mock.patch.dict, or monkeypatch.setenv for each item), call
`make_dataset(tmp_path, dimension=2)` and then `plan(dataset_id=1)`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

SHAPES = {2: (32, 32), 3: (16, 24, 24)}
LABELS = {"background": 0, "disc": 1, "square": 2}


def environment(root: Path) -> dict[str, str]:
    """The variables under which nnU-Net works inside `root`, with settings that keep two cores free of a fight."""
    folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    threads = {name: "1" for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**folders, **threads, "nnUNet_compile": "false"}


def draw_case(random: np.random.Generator, shape: Sequence[int], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a bright disc (label 1) and a brighter square (2) with shading and noise: channels × shape, and shape."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))

    def position() -> np.ndarray:
        return random.uniform(-0.5, 0.5, (len(shape),) + (1,) * len(shape))

    label = np.zeros(shape, dtype=np.uint8)
    label[((grid - position()) ** 2).sum(0) < random.uniform(0.3, 0.5) ** 2] = 1
    label[np.abs(grid - position()).max(0) < random.uniform(0.2, 0.3)] = 2
    clean = np.array([0.15, 0.5, 0.8])[label] + 0.1 * grid[0]
    image = clean + random.normal(0, 0.08, (channels, *shape))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), label


def make_dataset(
    root: Path,
    dimension: int = 2,
    channels: int = 1,
    labeled: int = 6,
    unlabeled: int = 4,
    test: int = 2,
    labels: Mapping[str, int | Sequence[int]] = LABELS,
    file_ending: str | None = None,
    seed: int = 0,
    dataset_id: int = 1,
    shape: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
) -> Path:
    """Writes root/nnUNet_raw/DatasetXXX_Tiny with imagesTr, labelsTr, imagesUn, imagesTs and labelsTs; gives it.

    `labels` may hold regions (a sequence as value) and the ignore label, which then covers the first fifth of each
    label map. `shape` and `spacing` are in array order (z, y, x); the ending is .png in 2D and .nii.gz in 3D.
    """
    ending = file_ending or {2: ".png", 3: ".nii.gz"}[dimension]
    folder = root / "nnUNet_raw" / f"Dataset{dataset_id:03d}_Tiny"
    random = np.random.default_rng(seed)
    for kind, count in (("Tr", labeled), ("Un", unlabeled), ("Ts", test)):
        (folder / f"images{kind}").mkdir(parents=True, exist_ok=True)
        for case in (f"{kind.lower()}_{i:03d}" for i in range(count)):
            image, label = draw_case(random, shape or SHAPES[dimension], channels)
            if "ignore" in labels:
                label[: len(label) // 5] = labels["ignore"]
            for channel, values in enumerate(image):
                write_image(folder / f"images{kind}" / f"{case}_{channel:04d}{ending}", values, spacing)
            if kind != "Un":
                (folder / f"labels{kind}").mkdir(exist_ok=True)
                write_image(folder / f"labels{kind}" / f"{case}{ending}", label, spacing)
    description = {
        "channel_names": {str(i): f"channel{i}" for i in range(channels)},
        "labels": {name: value if isinstance(value, int) else list(value) for name, value in labels.items()},
        "numTraining": labeled,
        "file_ending": ending,
    }
    if any(not isinstance(value, int) for value in labels.values()):
        description["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def write_image(path: Path, values: np.ndarray, spacing: Sequence[float] | None = None) -> None:
    """Writes one channel or a label map in the format that the ending of `path` asks for."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(values)
    if spacing is not None:
        image.SetSpacing([float(x) for x in reversed(spacing)])
    sitk.WriteImage(image, str(path))


def plan(dataset_id: int = 1, configurations: Sequence[str] = ("2d",), planner: str = "ExperimentPlanner") -> Path:
    """Runs nnU-Net's fingerprint, planning and preprocessing with the folders of the environment; gives the plans.

    Two things are swapped for speed: pools of processes, each of which would import torch for ten seconds, become
    threads, and the fingerprint draws ten thousand voxels instead of a hundred million.
    """
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet
    from nnunetv2.paths import nnUNet_preprocessed

    with ExitStack() as swaps:
        swaps.enter_context(mock.patch.dict(os.environ, {"nnUNet_n_proc_DA": "1"}))  # planning fails when it is 0
        threads = SimpleNamespace(Pool=ThreadPool)
        swaps.enter_context(mock.patch("multiprocessing.get_context", return_value=threads))
        swaps.enter_context(mock.patch("nnunetv2.utilities.utils.Pool", ThreadPool))
        fingerprint = nnunet.DatasetFingerprintExtractor(dataset_id, num_processes=1)
        fingerprint.show_progress_bar = False
        fingerprint.num_foreground_voxels_for_intensitystats = 1e4
        fingerprint.run(overwrite_existing=True)
        plans = nnunet.plan_experiments([dataset_id], planner)
        nnunet.preprocess([dataset_id], plans, tuple(configurations), (1,), show_progress_bar=False)
    return next(Path(nnUNet_preprocessed).glob(f"Dataset{dataset_id:03d}_*")) / f"{plans}.json"
