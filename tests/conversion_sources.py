"""Small sources in the layouts of the challenges, and what the tests of all converters share."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from nnunet_semi.dataset_conversion.writing import Writing

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
QUIET = Writing(verify=False, num_processes=1, progress=False, log=lambda sentence: None)
ROWS, COLUMNS = 12, 16


@pytest.fixture(autouse=True)
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty nnUNet_raw; a test module imports this fixture to use it in all of its tests."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nnUNet_raw"))
    raw().mkdir()


def raw() -> Path:
    """The folder of that fixture."""
    return Path(os.environ["nnUNet_raw"])


def random_image(seed: int, *shape: int) -> np.ndarray:
    """Bytes, none of them 0."""
    return np.random.default_rng(seed).integers(1, 256, shape, np.uint8)


def write_png(path: Path, values: np.ndarray, **options: Any) -> Path:
    """Writes a picture, in the format of the ending of `path`, and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def write_volume(
    path: Path,
    values: np.ndarray,
    spacing: Sequence[float] | None = None,
    origin: Sequence[float] | None = None,
    direction: Sequence[float] | None = None,
) -> Path:
    """Writes an array (z, y, x) with a geometry (x, y, z), and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(values)
    for name, value in (("Spacing", spacing), ("Origin", origin), ("Direction", direction)):
        if value is not None:
            getattr(image, f"Set{name}")([float(number) for number in value])
    sitk.WriteImage(image, str(path), True)
    return path


def blob(shape: Sequence[int], classes: int) -> np.ndarray:
    """A label map that holds 0 to `classes`, in stripes."""
    return (np.arange(int(np.prod(shape))).reshape(shape) % (classes + 1)).astype(np.uint8)


def make_fugc(root: Path, labeled: int = 5, unlabeled: int = 3, validation: int = 0) -> Path:
    """The layout of FUGC 2025."""
    parts = (
        ("train/labeled_data", labeled, True),
        ("train/unlabeled_data", unlabeled, False),
        ("val/labeled_data", validation, True),
    )
    for seed, (folder, count, has_labels) in enumerate(parts):
        for number in range(1, count + 1):
            image = random_image(100 * seed + number, ROWS, COLUMNS, 3)
            write_png(root / folder / "images" / f"{number:04d}.png", image)
            if has_labels:
                write_png(root / folder / "labels" / f"{number:04d}.png", blob((ROWS, COLUMNS), 2))
    return root


FLARE_SCHEMES = {
    "challenge": (
        "Training/FLARE22_LabeledCase50/images/FLARE22_Tr_{:04d}_0000.nii.gz",
        "Training/FLARE22_LabeledCase50/labels/FLARE22_Tr_{:04d}.nii.gz",
        "Training/FLARE22_UnlabeledCase1-1000/Case_{:05d}_0000.nii.gz",
        "Tuning/images/FLARETs_{:04d}_0000.nii.gz",
    ),
    "seed 1": (
        "labeled_image/train_{:03d}_0000.nii.gz",
        "labeled_mask/train_{:03d}.nii.gz",
        "unlabeled_image/case_{:03d}_0000.nii.gz",
        "test_image/test_{:03d}_0000.nii.gz",
    ),
    "seed 2": (
        "train_images/train_{:03d}_0000.nii.gz",
        "train_mask/train_{:03d}.nii.gz",
        "trainu_images/train_{:03d}_0000.nii.gz",
        "val_images/val_{:03d}_0000.nii.gz",
    ),
}


def make_flare(root: Path, scheme: str = "challenge", count: int = 2, **geometry: Sequence[float]) -> Path:
    """A layout of FLARE22 with `count` cases of each kind: a body in air."""
    for kind, pattern in enumerate(FLARE_SCHEMES[scheme]):
        for number in range(1, count + 1):
            values = blob((6, 8, 7), 13) if kind == 1 else body(10 * kind + number)
            write_volume(root / pattern.format(number), values, **geometry)
    return root


def body(seed: int, shape: Sequence[int] = (6, 8, 7)) -> np.ndarray:
    """Soft tissue with noise, in HU."""
    return (40 + np.random.default_rng(seed).normal(0, 10, shape)).astype(np.int16)


def signed_permutations() -> list[np.ndarray]:
    """All 48 ways in which axes can lie."""
    return [
        np.eye(3)[list(order)] * np.array(signs)[:, None]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]


def oblique(seed: int) -> np.ndarray:
    """A rotation by a few degrees about all axes."""
    matrix = np.eye(3) + np.random.default_rng(seed).normal(0, 0.1, (3, 3))
    return np.linalg.qr(matrix)[0] * -1


def in_air(shape: tuple[int, ...] = (20, 60, 50)) -> np.ndarray:
    """A body of noise with a table below it, in air."""
    values = np.full(shape, -1000, np.int16)
    values[5:15, 20:40, 15:35] = body(0, (10, 20, 20))
    values[:, 55:57, :] = 100
    return values


def make_aicup(root: Path, count: int = 2) -> Path:
    """The layout of AICUP: a triangle in every image, and two test images."""
    for number in range(count):
        folder = root / "SEG_Train_Datasets"
        write_png(folder / "Train_Images" / f"{number:08d}.jpg", random_image(number, ROWS, COLUMNS, 3))
        shapes = [{"label": "STAS", "points": [[1, 1], [9.5, 2], [4, 8]], "shape_type": "polygon"}]
        write_labelme(folder / "Train_Annotations" / f"{number:08d}.json", shapes)
    for name in ("Public_00000000", "Private_00000000"):
        write_png(root / f"SEG_{name[:7]}" / f"{name}.jpg", random_image(99, ROWS, COLUMNS, 3))
    return root


def write_labelme(path: Path, shapes: list[dict[str, Any]], encoding: str = "utf-8", **more: Any) -> Path:
    """A file of LabelMe about an image of the usual size, unless `more` says otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "4.5.6", "shapes": shapes, "imageHeight": ROWS, "imageWidth": COLUMNS, **more}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    return path


def make_stack(
    root: Path,
    images: Sequence[np.ndarray] | None = None,
    points: Iterable[tuple[int, int, float, float]] | None = None,
    scales: Sequence[float] = (0.1,),
    compressed: bool = False,
) -> Path:
    """The layout of CL-Detection: a padded stack in three channels and the list of points (name, image, x, y)."""
    images = images if images is not None else [random_image(n, ROWS - n % 3, COLUMNS - n % 2) for n in range(8)]
    if points is None:
        points = [(name, i, name % 13, (3 * name) % 9) for i in range(1, len(images) + 1) for name in range(1, 39)]
    rows, columns = max(len(image) for image in images) + 2, max(image.shape[1] for image in images) + 3
    stack = np.zeros((len(images), rows, columns, 3), np.uint8)
    for padded, image in zip(stack, images, strict=True):
        padded[: image.shape[0], : image.shape[1]] = image[..., None]
    root.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(stack, isVector=True), str(root / "train_stack.mha"), compressed)
    listed = [
        {"name": name if name % 2 else str(name), "point": [x, y, image], "scale": str(scales[image % len(scales)])}
        for name, image, x, y in points
    ]
    content = {"name": "Orthodontic landmarks", "type": "Multiple points", "points": listed}
    (root / "train-gt.json").write_text(json.dumps(content))
    return root


def check_integrity(folder: Path) -> None:
    """nnU-Net's own integrity check, its processes replaced by threads, which need not import torch."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    threads = SimpleNamespace(Pool=ThreadPool)
    with (
        mock.patch("multiprocessing.get_context", return_value=threads),
        mock.patch("nnunetv2.utilities.utils.Pool", ThreadPool),
    ):
        verify_dataset_integrity(str(folder), 1)


def listing(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def image_of(path: Path) -> np.ndarray:
    """The values of a picture."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def volume_of(path: Path) -> tuple[np.ndarray, sitk.Image]:
    """The values (z, y, x) of a volume, and the volume."""
    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), image
