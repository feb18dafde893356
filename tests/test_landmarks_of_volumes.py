"""Landmarks in real volumes: points derived from hippocampus masks, through nnU-Net's preprocessing and loading."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from short_training import stop_workers
from small_dataset import environment, plan
from test_heatmap_trainer import heatmap_trainer, only_geometry

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from landmark_data import write_landmark_dataset  # noqa: E402
from landmarks3d import NAMES, landmarks_of  # noqa: E402

MASKS = ROOT.parent / "shared" / "data" / "hippocampus" / "labels"
needs_data = pytest.mark.skipif(not MASKS.is_dir(), reason=f"the real data is not at {MASKS}")


def test_landmarks_of_a_mask() -> None:
    mask = np.zeros((4, 9, 5), np.uint8)
    mask[1:3, 4:8, 2] = 1
    mask[1:3, 1:4, 2] = 2
    points = landmarks_of(mask)
    assert tuple(points) == NAMES
    assert points["anterior centre"] == (2, 5.5, 1.5) and points["posterior centre"] == (2, 2, 1.5)
    assert points["border centre"] == (2, 4, 1.5)
    assert points["front tip"] == (2, 6.5, 1.5) and points["rear tip"] == (2, 1.5, 1.5)


@needs_data
def test_points_follow_the_masks_through_nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are the masks themselves, so that a batch shows where the centre of its points must be."""
    cases = []
    for path in sorted(MASKS.glob("*.nii.gz"))[:5]:
        mask = sitk.Cast(sitk.ReadImage(str(path)) > 0, sitk.sitkFloat32)
        centre = np.argwhere(sitk.GetArrayFromImage(mask)).mean(0)
        for corner in ((0, 0, 0), tuple(size - 1 for size in mask.GetSize())):
            mask[corner] = 1e-6  # or nnU-Net would crop the volume to the mask
        cases.append((path.name.split(".")[0], mask, {"centre": tuple(centre[::-1].tolist())}))
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    folder = tmp_path / "nnUNet_raw" / "Dataset001_Masks"
    write_landmark_dataset(folder, ["centre"], cases, [], "noNorm", ".nii.gz")
    trainer = heatmap_trainer(plan(1, ("3d_fullres",)), dimension=3)
    trainer.on_train_start()
    loader = trainer.dataloader_train.data_loader.loader
    loader.transforms = only_geometry(loader.transforms)
    np.random.seed(0)
    torch.manual_seed(0)
    errors = []
    for _ in range(10):
        batch = next(loader)
        for image, points in zip(batch["data"], batch["target"], strict=True):
            if image[0].sum() - image[0, 1:-1, 1:-1, 1:-1].sum() < 1:  # nothing of the mask is cut off
                errors.append(float((centre_of_mass(image[0]) - points[0]).norm()))
    assert len(errors) > 10
    assert max(errors) < 0.05  # voxels
    stop_workers(trainer)


def centre_of_mass(image: torch.Tensor) -> torch.Tensor:
    """In voxels, of values that are 0 where nothing is."""
    grid = torch.stack(torch.meshgrid(*map(torch.arange, image.shape), indexing="ij"), -1).float()
    return (grid * image[..., None]).sum((0, 1, 2)) / image.sum()
