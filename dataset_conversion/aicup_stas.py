"""AICUP 2022 STAS: tumour spread in lung pathology, outlined in LabelMe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_semi.dataset_conversion import labelme, pictures
from nnunet_semi.dataset_conversion.plan import LABELED, TEST, Output, Plan, case_name, describe
from nnunet_semi.dataset_conversion.raster import refuse_other_channels
from nnunet_semi.dataset_conversion.sources import Source
from nnunet_semi.dataset_conversion.writing import DEFAULT, Conversion, Writing, write_dataset
from nnunet_semi.errors import Problem, Unusable

LABELS = {"background": 0, "STAS": 1}
LAYOUT = "SEG_Train_Datasets/Train_Images and SEG_Train_Datasets/Train_Annotations"
JPEG = (".jpg", ".jpeg")


def convert(
    source: Path | str, dataset_id: int | None = None, name: str = "STAS", *, writing: Writing = DEFAULT
) -> Conversion:
    """Writes nnUNet_raw/Dataset<id>_<name>; see `plan` for what becomes what, and `write_dataset` for the rest."""
    return write_dataset(plan(source), dataset_id, name, writing)


def plan(source: Path | str) -> Plan:
    """JPEG becomes PNG, the union of all shapes of a file becomes the label 1, whatever their own labels are.

    Test images (Public_*, Private_*, in any folder of the source) go to imagesTs.

    Args:
        source: the folder that holds `SEG_Train_Datasets`, or that folder itself.
    """
    files = Source(source)
    result = Plan(files.root, describe("aicup-stas", "RGB", LABELS, ".png"), problems=files.problems, notes=files.notes)
    image_folder = files.find("SEG_Train_Datasets/Train_Images", "Train_Images")
    label_folder = files.find("SEG_Train_Datasets/Train_Annotations", "Train_Annotations")
    if image_folder is None or label_folder is None:
        files.unknown_layout(LAYOUT)
        return result.finish()
    images = files.files(image_folder, JPEG)
    if not images:
        files.empty(image_folder, "00000000.jpg …")
    labels = files.files(label_folder, (".json",))
    for stem, image, label in files.pairs(images, labels, image_folder, label_folder):
        result.add(LABELED, case_name(stem), [image], Slide(), label)
    for folder in _test_folders(files.root, image_folder):
        for stem, image in sorted(files.files(folder, JPEG).items()):
            if stem.startswith(("Public_", "Private_")):
                result.add(TEST, case_name(stem), [image], Slide())
    return result.finish()


def _test_folders(root: Path, training: Path) -> list[Path]:
    """The folders that hold test images."""
    patterns = ("Public_*", "Private_*")
    found = {path.parent for pattern in patterns for path in root.rglob(pattern) if path.suffix.lower() in JPEG}
    return sorted(found - {training})


@dataclass(frozen=True)
class Slide:
    """An RGB image, and the mask of what is outlined in it where there is an annotation."""

    def __call__(self, image_path: Path, annotation_path: Path | None = None) -> Sequence[Output]:
        image = pictures.read_image(image_path)
        refuse_other_channels(image_path, image, 3)
        if annotation_path is None:
            return [image.output()]
        return [image.output(), pictures.png(union(annotation_path, image.shape))]


def union(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The mask of everything that is outlined in a file.

    Raises:
        Unusable: it cannot be read, or is about an image of another shape (rows, columns).
    """
    annotation = labelme.read(path)
    size = (shape[1], shape[0])
    if annotation.size not in (None, size):
        raise Unusable(Problem(path, f"outlines in an image of {annotation.size} pixels", f"{size} as its image"))
    return labelme.draw(annotation.shapes, [1] * len(annotation.shapes), size)
