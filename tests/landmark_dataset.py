"""Tiny landmark datasets: bright dots at fixed offsets from each other, in noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_semi.dataset_conversion.landmarks import draw_balls
from nnunet_semi.geometry import Geometry
from nnunet_semi.landmark_files import Landmarks, write

SHAPES = {2: (56, 48), 3: (20, 28, 24)}
SPACING = {2: (0.7, 0.6), 3: (1.1, 0.8, 0.9)}  # in mm, array order
OFFSETS = {  # of landmarks from the centre of the pattern, in mm, array order
    2: ((-8.0, -6.0), (-6.0, 6.0), (7.0, 0.5)),
    3: ((-4.0, -6.0, -5.0), (4.0, 6.0, 5.0)),
}
DOT = 1.6  # mm, the standard deviation of a dot: two voxels, so that interpolation keeps its centre


def dots(points: np.ndarray, shape: Sequence[int], spacing: Sequence[float], width: float = DOT) -> np.ndarray:
    """Dots of heights 1, 2, … at voxel coordinates (L, dim); NaN and outside ones leave what they leave."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    image = np.zeros(shape)
    for height, point in enumerate(points, 1):
        if not np.isnan(point).any():
            image += height * np.exp(-0.5 * (((grid - point) * spacing / width) ** 2).sum(-1))
    return image


def make_landmark_dataset(
    root: Path,
    dimension: int = 2,
    labeled: int = 6,
    unlabeled: int = 0,
    noise: float = 0.2,
    seed: int = 0,
    dataset_id: int = 1,
    landmarks: Mapping[str, Any] | None = None,
) -> Path:
    """Writes root/nnUNet_raw/DatasetXXX_Dots with imagesTr, labelsTr, landmarksTr and, where asked, imagesUn.

    Sizes differ a little between cases, and every image has a border of zeros, which nnU-Net crops off. In the second
    case the first landmark is missing; `landmarks` goes to dataset.json.
    """
    ending = {2: ".mha", 3: ".nii.gz"}[dimension]
    folder = root / "nnUNet_raw" / f"Dataset{dataset_id:03d}_Dots"
    random = np.random.default_rng(seed)
    spacing = np.array(SPACING[dimension])
    names = [f"dot {number}" for number in range(1, len(OFFSETS[dimension]) + 1)]
    for kind in ("imagesTr", "labelsTr", "landmarksTr", *(["imagesUn"] if unlabeled else [])):
        (folder / kind).mkdir(parents=True)
    for number in range(labeled + unlabeled):
        shape = tuple(np.array(SHAPES[dimension]) + random.integers(0, 4, dimension))
        middle = (np.array(shape) - 1) / 2 + random.uniform(-3, 3, dimension) / spacing
        voxel = middle + np.array(OFFSETS[dimension]) / spacing
        image = dots(voxel, shape, spacing) + random.normal(0, noise, shape)
        image[:2], image[..., -3:] = 0, 0
        if number < labeled:
            case = f"case_{number:03d}"
            save(folder / "imagesTr" / f"{case}_0000{ending}", image.astype(np.float32), spacing)
            if number == 1:
                voxel[0] = np.nan
            geometry = Geometry.of(shape[::-1], spacing[::-1])
            write(folder / "landmarksTr" / f"{case}.json", Landmarks(tuple(names), voxel, geometry))
            points = {n: None if np.isnan(p).any() else tuple(p[::-1]) for n, p in zip(names, voxel, strict=True)}
            balls = draw_balls(points, shape[::-1], spacing[::-1])
            save(folder / "labelsTr" / f"{case}{ending}", balls, spacing)
        else:
            save(folder / "imagesUn" / f"un_{number:03d}_0000{ending}", image.astype(np.float32), spacing)
    description = {
        "channel_names": {"0": "dots"},
        "labels": {"background": 0} | {name: label for label, name in enumerate(names, 1)},
        "numTraining": labeled,
        "file_ending": ending,
        "landmarks": {"names": names, **(landmarks or {})},
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def save(path: Path, values: np.ndarray, spacing: Sequence[float]) -> None:
    """Writes an image with a spacing in array order."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing([float(s) for s in spacing[::-1]])
    sitk.WriteImage(image, str(path))
