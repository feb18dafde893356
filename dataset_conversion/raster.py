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
        direction: of the axes, row by row; empty where the format has none.
        origin: where the first pixel lies; empty where the format has none.
        palette: whether the values are indices into a palette, as in VOC.
    """

    values: np.ndarray
    channels: int
    as_is: bool
    encode: Callable[[np.ndarray], Output]
    spacing: tuple[float, ...] = ()
    direction: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()
    palette: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns, or slices, rows and columns."""
        return self.values.shape[:-1] if self.channels > 1 else self.values.shape

    def output(self, image: Raster | None = None) -> Output:
        """What leaves these values in the dataset, with the geometry of another image on their grid if one is given."""
        on = image or self
        return None if self.as_is and not self.differs(on, exactly=True) else on.encode(self.values)

    def differs(self, image: Raster, exactly: bool = False) -> str:
        """What is not as in an image, "spacing", "direction" or "origin"; "" for nothing, or where a format has none.

        Args:
            image: on the same grid but for that.
            exactly: as nnU-Net compares; otherwise rounding is passed over, and less than a quarter of a pixel.
        """
        pixel = min(image.spacing, default=0)
        slack = {"spacing": (1e-3, 0), "direction": (0, 1e-3), "origin": (0, pixel / 4)}  # relative, absolute
        for fact, (relative, absolute) in slack.items():
            got, wanted = getattr(self, fact), getattr(image, fact)
            rtol, atol = (1e-5, 1e-8) if exactly else (relative, absolute)
            if got and wanted and not (len(got) == len(wanted) and np.allclose(got, wanted, rtol, atol)):
                return fact
        return ""


def refuse_other_channels(path: Path, raster: Raster, expected: int) -> None:
    """Raises `Unusable` where an image has another number of channels."""
    if raster.channels != expected:
        kinds = {1: "1 channel (grey)", 3: "3 channels (RGB)", 4: "4 channels (with transparency)"}
        got, wanted = (kinds.get(count, f"{count} channels") for count in (raster.channels, expected))
        raise Unusable(Problem(path, got, wanted))


def refuse_other_grid(path: Path, raster: Raster, image: Raster, whose: str = "its image") -> None:
    """Raises `Unusable` where a label map, or another channel, does not lie on the grid of an image."""
    if raster.shape != image.shape:
        raise Unusable(Problem(path, f"the shape {raster.shape}", f"{image.shape} as {whose}"))
    fact = raster.differs(image)
    if fact:
        got, wanted = getattr(raster, fact), getattr(image, fact)
        remedy = "resample it onto that grid, or give it that header if its voxels fit and only its own is wrong"
        raise Unusable(Problem(path, f"the {fact} {got}", f"{wanted} as {whose}; {remedy}"))


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
