"""Unlabeled cases that do not belong, made of real images: what a score has to rank low."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk

from cases import Split, read_protocol, split_cases
from prepare import Preparation

OTHER = {"la": "acdc", "hippocampus": "la", "acdc": "hippocampus"}  # where images of another kind come from
KINDS = ("modality", "noise", "crop", "blank")
PREFIX = "bad_"


@dataclass(frozen=True)
class PlantedPreparation(Preparation):
    """A dataset of some unlabeled cases and, beside them, bad ones of every kind.

    Attributes:
        unlabeled: how many unlabeled cases stay, the first ones of the protocol.
        planted: how many bad cases of each kind are made of those that do not.
    """

    unlabeled: int
    planted: int

    def split(self, labeled: int | str) -> Split:
        """The cases by role; those planted are no cases of the data and are not among them."""
        whole = split_cases(read_protocol(self.data, self.task), self.task, labeled, self.test)
        return Split(whole.labeled, whole.unlabeled[: self.unlabeled], whole.test)

    def dataset(self, labeled: int | str) -> str:
        """Name of the dataset; its id is 20 above that of the dataset without planted cases."""
        name = super().dataset(labeled)
        return f"Dataset{int(name[7:10]) + 20}_{name[11:]}_planted"

    def _write_raw(self, dataset: str, split: Split) -> None:
        super()._write_raw(dataset, split)
        if dataset.endswith("_planted"):
            folder = self.folder("nnUNet_raw", dataset) / "imagesUn"
            for name, image in self._bad_cases(split):
                sitk.WriteImage(image, str(folder / f"{name}_0000.nii.gz"))

    def _bad_cases(self, split: Split) -> Iterator[tuple[str, sitk.Image]]:
        source, random = self.data / self.task.folder, np.random.default_rng(0)
        whole = split_cases(read_protocol(self.data, self.task), self.task, len(split.labeled), self.test)
        spare = [case for case in whole.unlabeled if case not in split.unlabeled] or list(split.unlabeled)
        others = sorted((self.data / OTHER[self.task.folder] / "images").glob("*.nii.gz"))
        for number in range(self.planted):
            path = source / "images" / f"{spare[number % len(spare)]}.nii.gz"
            image = sitk.ReadImage(str(path))
            label = sitk.GetArrayFromImage(sitk.ReadImage(str(source / "labels" / path.name)))
            values = sitk.GetArrayFromImage(image).astype(np.float32)
            yield f"{PREFIX}modality_{number}", sitk.ReadImage(str(others[number]))
            yield f"{PREFIX}noise_{number}", like(values + random.normal(0, 2 * values.std(), values.shape), image)
            yield f"{PREFIX}crop_{number}", like(emptiest_corner(values, label), image)
            faint = random.normal(0, 1, values.shape)  # preprocessing itself refuses images of one value
            yield f"{PREFIX}blank_{number}", like(values.mean() + faint, image)


def like(values: np.ndarray, image: sitk.Image) -> sitk.Image:
    """Voxels as an image of the same spacing and direction."""
    made = sitk.GetImageFromArray(values.astype(np.float32))
    made.SetSpacing(image.GetSpacing())
    made.SetDirection(image.GetDirection())
    return made


def emptiest_corner(values: np.ndarray, label: np.ndarray) -> np.ndarray:
    """That eighth of a volume, at one of its corners, in which the fewest voxels are labeled."""
    halves = [(slice(0, size // 2), slice(size // 2, size)) for size in values.shape]
    corner = min(product(*halves), key=lambda box: int(np.count_nonzero(label[box])))
    return values[corner]
