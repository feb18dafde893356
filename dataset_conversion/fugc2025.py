"""FUGC 2025: two lips of the cervix in transvaginal ultrasound, 50 labeled and 450 unlabeled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_semi.dataset_conversion import pictures
from nnunet_semi.dataset_conversion.plan import LABELED, TEST, UNLABELED, Output, Plan, case_name, describe
from nnunet_semi.dataset_conversion.raster import refuse_other_channels, refuse_other_grid, refuse_other_labels
from nnunet_semi.dataset_conversion.sources import Source
from nnunet_semi.dataset_conversion.splits import k_folds
from nnunet_semi.dataset_conversion.writing import DEFAULT, Conversion, Writing, write_dataset

LABELS = {"background": 0, "anterior lip": 1, "posterior lip": 2}
LAYOUT = "train/labeled_data/images, train/labeled_data/labels and train/unlabeled_data/images"


def convert(
    source: Path | str, dataset_id: int | None = None, name: str = "FUGC2025", *, writing: Writing = DEFAULT
) -> Conversion:
    """Writes nnUNet_raw/Dataset<id>_<name>; see `plan` for what becomes what, and `write_dataset` for the rest."""
    return write_dataset(plan(source), dataset_id, name, writing)


def plan(source: Path | str) -> Plan:
    """Labeled images become L0001 …, unlabeled ones U0001 …, because their numbers collide; val is V0001 … in imagesTs.

    The splits are five seeded ones of 40 + 10 labeled images (four fifths and one fifth of other numbers).

    Args:
        source: the folder that holds `train` and perhaps `val`, or what is in `train`.
    """
    files = Source(source)
    result = Plan(files.root, describe("fugc2025", "RGB", LABELS, ".png"), problems=files.problems, notes=files.notes)
    labeled = files.find("train/labeled_data", "labeled_data")
    if labeled is None:
        files.unknown_layout(LAYOUT)
        return result.finish()
    names = _add_labeled(result, files, labeled, LABELED, "L")
    result.splits = k_folds(names)
    unlabeled = files.find("train/unlabeled_data", "unlabeled_data")
    for stem, image in sorted(files.files(unlabeled / "images", (".png",)).items()) if unlabeled else ():
        result.add(UNLABELED, case_name(stem, "U"), [image], Picture())
    validation = files.find("val/labeled_data", "val")
    if validation is not None:
        _add_labeled(result, files, validation, TEST, "V")
    return result.finish()


def _add_labeled(result: Plan, files: Source, folder: Path, role: str, prefix: str) -> list[str]:
    """Adds the images of a folder with their labels; a test image may have none. Gives the names."""
    images = files.files(folder / "images", (".png",))
    has_labels = role == LABELED or (folder / "labels").is_dir()
    labels = files.files(folder / "labels", (".png",)) if has_labels else {}
    if not images:
        files.empty(folder / "images", "0001.png …")
    if not has_labels:
        for stem, image in sorted(images.items()):
            result.add(role, case_name(stem, prefix), [image], Picture())
        return []
    pairs = files.pairs(images, labels, folder / "images", folder / "labels")
    for stem, image, label in pairs:
        result.add(role, case_name(stem, prefix), [image], Picture(), label)
    return [case_name(stem, prefix) for stem, _, _ in pairs]


@dataclass(frozen=True)
class Picture:
    """An RGB image, and the label map that belongs to it where there is one."""

    def __call__(self, image_path: Path, label_path: Path | None = None) -> Sequence[Output]:
        image = pictures.read_image(image_path)
        refuse_other_channels(image_path, image, 3)
        if label_path is None:
            return [image.output()]
        label = pictures.read_label(label_path)
        refuse_other_grid(label_path, label, image)
        refuse_other_labels(label_path, label.values, range(len(LABELS)))
        return [image.output(), label.output()]
