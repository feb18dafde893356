"""An image or a label map in memory, whatever format it came from, and what can be wrong with its values."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_semi.dataset_conversion.plan import Output
from nnunet_semi.errors import Problem, Unusable
from nnunet_semi.labelmaps.damage import refuse_undefined
from nnunet_semi.raw import name_some


@dataclass(frozen=True)
class Raster:
    """One file's values and how to write others on the same grid.

    Attributes:
        values: (y, x), (z, y, x), or either with channels last.
        channels: how many nnU-Net will read; 1 where `values` has no axis for them.
        as_is: whether nnU-Net reads the same from the bytes of the file.
        encode: makes the output for other values on this grid.
        spacing: of the pixels, in the order of the file; empty where the format has none.
        palette: whether the values are indices into a palette, as in VOC.
    """

    values: np.ndarray
    channels: int
    as_is: bool
    encode: Callable[[np.ndarray], Output]
    spacing: tuple[float, ...] = ()
    palette: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns, or slices, rows and columns."""
        return self.values.shape[:-1] if self.channels > 1 else self.values.shape

    def output(self) -> Output:
        """What leaves these values in the dataset."""
        return None if self.as_is else self.encode(self.values)


def refuse_other_channels(path: Path, raster: Raster, expected: int) -> None:
    """Raises `Unusable` where an image has another number of channels."""
    if raster.channels != expected:
        kinds = {1: "1 channel (grey)", 3: "3 channels (RGB)", 4: "4 channels (with transparency)"}
        got, wanted = (kinds.get(count, f"{count} channels") for count in (raster.channels, expected))
        raise Unusable(Problem(path, got, wanted))


def refuse_other_grid(path: Path, label: Raster, image: Raster) -> None:
    """Raises `Unusable` where a label map does not lie on the grid of its image."""
    if label.shape != image.shape:
        raise Unusable(Problem(path, f"the shape {label.shape}", f"{image.shape} as its image"))
    same_spacing = len(label.spacing) == len(image.spacing) and np.allclose(label.spacing, image.spacing)
    if label.spacing and image.spacing and not same_spacing:
        raise Unusable(Problem(path, f"the spacing {label.spacing}", f"{image.spacing} as its image"))


def label_values(path: Path, values: np.ndarray) -> list[int]:
    """The distinct values of a label map, sorted.

    Raises:
        Unusable: they are no whole numbers from 0 on.
    """
    if values.size == 0:
        return []
    refuse_undefined(path, values)
    found: set[float] = set().union(*(np.unique(part).tolist() for part in values))
    wrong = sorted(value for value in found if value != int(value) or value < 0)
    if wrong:
        raise Unusable(Problem(path, f"the labels {name_some(map(str, wrong))}", "whole numbers from 0 on"))
    return sorted(int(value) for value in found)


def refuse_other_labels(path: Path, values: np.ndarray, allowed: Collection[int]) -> None:
    """Raises `Unusable` where a label map holds values that are not allowed."""
    wrong = [str(value) for value in label_values(path, values) if value not in allowed]
    if wrong:
        known = f"{min(allowed)} to {max(allowed)}" if len(allowed) > 2 else " and ".join(map(str, sorted(allowed)))
        raise Unusable(Problem(path, f"the labels {name_some(wrong)}", known))


def smallest_type(values: np.ndarray) -> np.ndarray:
    """Label values as uint8, or as uint16 where they do not fit."""
    return values.astype(np.uint8 if not values.size or values.max() <= 255 else np.uint16)
