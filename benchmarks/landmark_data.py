"""What the landmark benchmarks share: datasets with exact points, a run and its errors, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """Writes a dataset into nnUNet_raw: images, points, and the balls that nnU-Net's own commands accept as labels.

    dataset.json is written last, so it says that the rest is there.
    """
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


def errors_of_run(
    run: Callable[..., None], results: Path, dataset: str, configuration: str, trainer: str, device: str
) -> tuple[Path, dict[str, float]]:
    """Trains fold 0 unless it is validated; gives its validation folder, and the mean errors in its summary.json.

    Args:
        run: runs a command.
        results: nnUNet_results.
        trainer: with length and seed in its name.
    """
    summary = results / dataset / f"{trainer}__nnUNetPlans__{configuration}" / "fold_0" / "validation" / "summary.json"
    if not summary.is_file():
        run("nnUNetv2_train", dataset, configuration, "0", "-tr", trainer, "-device", device)
    return summary.parent, json.loads(summary.read_text(encoding="utf-8"))["foreground_mean"]


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as a table in Markdown, with the columns of the last one."""
    names = list(rows[-1]) if rows else []
    print("|", " | ".join(names), "|\n|", " | ".join("---" for _ in names), "|")
    for row in rows:
        values = [row.get(name, "") for name in names]
        print("|", " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values), "|")
