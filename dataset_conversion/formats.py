"""The formats that nnU-Net reads, each with its reader here, and the one ending that all files of a dataset get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from nnunet_semi.dataset_conversion import pictures, volumes
from nnunet_semi.dataset_conversion.plan import Output
from nnunet_semi.dataset_conversion.raster import Raster
from nnunet_semi.dataset_conversion.sources import PICTURES, ending_of
from nnunet_semi.errors import Problem, Unusable
from nnunet_semi.labelmaps.damage import refuse_undefined

TIFF = (".tif", ".tiff")
ENDINGS = (*PICTURES, *TIFF, *volumes.ENDINGS)


def dataset_ending(name: str) -> str | None:
    """The ending of files in a dataset that is made of files such as this one; None for a format unknown here."""
    ending = (ending_of(name, ENDINGS) or "").lower()
    if ending in PICTURES:
        return ".png"
    return ".tif" if ending in TIFF else ending or None


def read_image(path: Path) -> Raster:
    """An image in any of the formats.

    Raises:
        Unusable: it cannot be read, or not by nnU-Net.
    """
    return _reader(path).read_image(path)


def read_label(path: Path) -> Raster:
    """A label map in any of the formats; its values are not looked at.

    Raises:
        Unusable: it cannot be read, or is none.
    """
    return _reader(path).read_label(path)


class Tiff:
    """TIFF: 2D in grey or RGB, or the slices of a volume."""

    @staticmethod
    def read_image(path: Path) -> Raster:
        """A picture or a volume.

        Raises:
            Unusable: unreadable, or of other dimensions.
        """
        try:
            values = tifffile.imread(path)
        except Exception as error:  # decoders raise anything
            found = f"a file that cannot be read ({type(error).__name__}: {error})"
            raise Unusable(Problem(path, found, "an intact TIFF")) from error
        channels = values.shape[-1] if values.ndim == 3 and values.shape[-1] in (2, 3, 4) else 1
        if values.ndim not in (2, 3) or channels not in (1, 3):
            raise Unusable(Problem(path, f"an array of {values.shape}", "grey, RGB, or the slices of a volume"))
        refuse_undefined(path, values)
        return Raster(values, channels, True, _tiff)

    @staticmethod
    def read_label(path: Path) -> Raster:
        """A label map, 2D or 3D.

        Raises:
            Unusable: it is no such thing.
        """
        raster = Tiff.read_image(path)
        if raster.channels != 1:
            raise Unusable(Problem(path, f"{raster.channels} channels", "one channel with a number per class"))
        return raster


def _tiff(values: np.ndarray) -> Output:
    return lambda target: tifffile.imwrite(target, values, compression="zlib")


def _reader(path: Path):  # noqa: ANN202
    ending = dataset_ending(path.name)
    if ending is None:
        raise Unusable(Problem(path, "an unknown format", ", ".join(ENDINGS)))
    return {".png": pictures, ".tif": Tiff}.get(ending, volumes)
