"""The formats that nnU-Net reads, each with its reader here, and the one ending that all files of a dataset get."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from nnunet_semi.dataset_conversion import pictures, volumes
from nnunet_semi.dataset_conversion.plan import Output
from nnunet_semi.dataset_conversion.raster import Raster
from nnunet_semi.dataset_conversion.sources import PICTURES, ending_of
from nnunet_semi.errors import Problem, Unusable
from nnunet_semi.labelmaps.damage import refuse_undefined
from nnunet_semi.raw import name_some

TIFF = (".tif", ".tiff")
ENDINGS = (*PICTURES, *TIFF, *volumes.ENDINGS)
COLOURS = (3, 4)  # so many slices in a TIFF are channels of one picture for nnU-Net
FEW_SLICES = "in TIFF, 3 or 4 slices are colours for nnU-Net: save such a volume, and all the others with it, as NIfTI"


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
            data = io.BytesIO(path.read_bytes())  # for which tifffile finds no other files that it names
            with tifffile.TiffFile(data, name=path.name) as file:
                _refuse_other_files(path, file.ome_metadata)
                axes, values = file.series[0].axes, file.asarray()
        except Unusable:
            raise
        except Exception as error:  # decoders raise anything
            found = f"a file that cannot be read ({type(error).__name__}: {error})"
            raise Unusable(Problem(path, found, "an intact TIFF")) from error
        found = f"an array of {values.shape} with the axes {axes}"
        few_slices = False
        if values.ndim == 3 and values.shape[0] in COLOURS and values.shape[-1] not in COLOURS:
            few_slices = axes[0] not in "SC"
            values = np.moveaxis(values, 0, -1)
        channels = values.shape[-1] if values.ndim == 3 and values.shape[-1] in (2, *COLOURS) else 1
        if values.ndim not in (2, 3) or channels not in (1, 3) or few_slices:
            raise Unusable(Problem(path, found, f"grey, RGB, or the slices of a volume; {FEW_SLICES}"))
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
            expected = f"one channel with a number per class; {FEW_SLICES}"
            raise Unusable(Problem(path, f"{raster.channels} channels", expected))
        return raster


def _refuse_other_files(path: Path, metadata: str | None) -> None:
    """Raises `Unusable` where OME-XML says that pages of an image are in other files, which are never opened."""
    try:
        root = ElementTree.fromstring(metadata or "<OME/>")
    except ElementTree.ParseError:
        return  # tifffile, too, passes it over
    own = root.get("UUID")
    others = [str(part.get("FileName")) for part in root.iterfind(".//{*}UUID") if part.text != own]
    if others:
        found = f"an OME-TIFF with pages in other files ({name_some(dict.fromkeys(others))})"
        raise Unusable(Problem(path, found, "all pages in the file itself; save them as one TIFF without OME-XML"))


def _tiff(values: np.ndarray) -> Output:
    return lambda target: tifffile.imwrite(target, values, compression="zlib")


def _reader(path: Path):  # noqa: ANN202
    ending = dataset_ending(path.name)
    if ending is None:
        raise Unusable(Problem(path, "an unknown format", ", ".join(ENDINGS)))
    return {".png": pictures, ".tif": Tiff}.get(ending, volumes)
