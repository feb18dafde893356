"""Writes landmark datasets: images, exact points, and the balls that nnU-Net's own commands accept as labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import SimpleITK as sitk

from nnunet_semi import landmark_files
from nnunet_semi.dataset_conversion.landmarks import draw_balls
from nnunet_semi.geometry import Geometry
from prepare import write_json

Points = Mapping[str, "Sequence[float] | None"]  # name → x, y(, z) in voxels, None where it is missing


def write_landmark_dataset(
    folder: Path,
    names: Sequence[str],
    labeled: Iterable[tuple[str, sitk.Image, Points]],
    unlabeled: Iterable[tuple[str, sitk.Image]],
    modality: str,
    ending: str,
) -> None:
    """Writes a dataset into nnUNet_raw; dataset.json is written last, so it says that the rest is there."""
    for kind in ("imagesTr", "labelsTr", "landmarksTr", "imagesUn"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    count = 0
    for name, image, points in labeled:
        sitk.WriteImage(image, folder / "imagesTr" / f"{name}_0000{ending}")
        geometry = Geometry.of(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
        landmark_files.write(folder / "landmarksTr" / f"{name}.json", landmark_files.Landmarks.of(points, geometry))
        balls = sitk.GetImageFromArray(draw_balls(points, image.GetSize(), image.GetSpacing()))
        balls.CopyInformation(image)
        sitk.WriteImage(balls, folder / "labelsTr" / f"{name}{ending}")
        count += 1
    for name, image in unlabeled:
        sitk.WriteImage(image, folder / "imagesUn" / f"{name}_0000{ending}")
    description = {
        "channel_names": {"0": modality},
        "labels": {"background": 0, **{name: label for label, name in enumerate(names, 1)}},
        "numTraining": count,
        "file_ending": ending,
        "landmarks": {"names": list(names)},
    }
    write_json(folder / "dataset.json", description)
