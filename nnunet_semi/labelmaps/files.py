"""Label maps as files: their grids, their voxels as whole numbers, and writing one like another.

Formats are those of nnU-Net's readers. Arrays have the axes z, y, x (in 2D y, x), as nnU-Net's have, and hold the
smallest unsigned integers that will do, so that a volume takes a byte per voxel and not the four of nnU-Net's readers.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_semi.errors import Unusable, UserError
from nnunet_semi.storage import atomic_path

NIFTI, PICTURES, TIFF = (".nii.gz", ".nii"), (".png", ".bmp"), (".tif", ".tiff")
# what is not named here is read by ITK; not .gipl, of which ITK does not tell that a file was cut off
ENDINGS = (*NIFTI, ".mha", ".nrrd", *PICTURES, *TIFF)

LabelMap = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
        shape: z, y, x.
        spacing: in the same order, in mm; None for files that know none, which are measured in pixels.
        direction: one row for each axis of the world (left, posterior, superior), its columns x, y, z; None if unknown.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    direction: NDArray[np.float64] | None = None

    def difference(self, other: Grid) -> str:
        """In words how this grid differs from another, or "" if voxels can be compared one by one."""
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        if self.spacing and other.spacing and not np.allclose(self.spacing, other.spacing, rtol=1e-3):
            return f"spacing {_rounded(self.spacing)} against {_rounded(other.spacing)}"
        if self.direction is not None and other.direction is not None and self.direction.shape == other.direction.shape:
            return "" if np.allclose(self.direction, other.direction, atol=1e-2) else "another orientation"
        return ""


def _rounded(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)


def ending_of(path: Path) -> str:
    """The ending by which the format is known, such as .nii.gz; "" for a file that is no label map."""
    return next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), "")


def case_of(path: Path) -> str:
    """The name of the case: that of the file without its ending."""
    return path.name[: -len(ending_of(path))]


# --- reading ---


def read_grid(path: Path) -> Grid:
    """The grid that a file's header states, without reading the voxels.

    Raises:
        UserError: the file cannot be read or holds no label map.
    """
    return _guarded(path, voxels=False)[1]


def read_label_map(path: Path, binary: bool = False) -> tuple[LabelMap, Grid]:
    """The labels of a file and its grid.

    Args:
        path: the file. Of pictures with a palette the indices are the labels; an alpha channel is left out.
        binary: for masks of any depth and number of channels: 1 where any channel is above 0, else 0.

    Raises:
        UserError: the file cannot be read, or holds anything but whole numbers from 0 in one channel (several
            channels if they are all alike).
    """
    voxels, grid = _guarded(path, voxels=True)
    if voxels.ndim > len(grid.shape):  # colours, in the last axis
        if not binary and (voxels != voxels[..., :1]).any():
            raise UserError(
                f"{path} is a coloured picture; expected one channel that holds the labels (for black and white masks "
                "of any colour use a binary rule: --challenge aicup-stas, ensemble --binary)"
            )
        voxels = voxels.max(axis=-1)
    if binary:
        return (voxels > 0).view(np.uint8), grid
    return _as_labels(voxels, path), grid


def is_white_mask(path: Path) -> bool:
    """Whether a picture is a binary mask by its looks: it has colours, two values, or white as bright as can be.

    Pictures with a palette, whose values are labels, and formats that are no pictures are none.
    """
    from PIL import Image

    if ending_of(path) not in (*PICTURES, *TIFF):
        return False
    voxels, grid = _guarded(path, voxels=True)
    if voxels.ndim > len(grid.shape) or voxels.dtype == bool:
        return True
    if int(voxels.max(initial=0)) not in (2**8 - 1, 2**16 - 1):
        return False
    return ending_of(path) in TIFF or Image.open(path).mode != "P"


def _as_labels(voxels: NDArray[Any], path: Path) -> LabelMap:
    if voxels.dtype == bool:
        return voxels.view(np.uint8)
    lowest, highest = (voxels.min(), voxels.max()) if voxels.size else (0, 0)
    if not (lowest >= 0 and highest < 2**32):  # NaN is neither
        raise UserError(f"{path} holds values from {lowest:g} to {highest:g}; expected labels, whole numbers from 0")
    labels = voxels.astype(np.min_scalar_type(int(highest)), copy=False)
    if voxels.dtype.kind == "f" and (labels != voxels).any():
        raise UserError(f"{path} holds fractions; expected labels, whole numbers from 0 (is it a probability map?)")
    return labels


def _guarded(path: Path, voxels: bool) -> tuple[NDArray[Any], Grid]:
    """Reads a file with the library for its format; whatever that raises becomes a sentence."""
    ending = ending_of(path)
    read = _read_nifti if ending in NIFTI else _read_picture if ending in PICTURES else _read_by_itk
    if ending in TIFF:
        read = _read_tiff
    try:
        if voxels and ending not in (*PICTURES, *TIFF):
            from nnunet_semi.labelmaps.damage import refuse_incomplete  # here, because ITK takes a second to import

            refuse_incomplete(path)
        data, grid = read(path, voxels)
    except Unusable as refusal:
        found, expected = refusal.problem.found, refusal.problem.expected
        raise UserError(f"{path} cannot be read (got {found}); expected {expected}") from refusal
    except UserError:
        raise
    except Exception as error:  # every library has exceptions of its own
        raise UserError(f"{path} cannot be read ({_reason(error)})") from error
    if grid.spacing and not all(0 < size < math.inf for size in grid.spacing):
        raise UserError(
            f"{path} states the spacing {grid.spacing}; expected mm above 0; write it again with the right one"
        )
    return data, grid


def _reason(error: Exception) -> str:
    """What an error says, in a line: of ITK's many lines the one that says ERROR, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "ERROR: " in line), lines[0]).rpartition("ERROR: ")[2][:200]


NO_VOXELS = np.empty(0)


def _read_nifti(path: Path, voxels: bool) -> tuple[NDArray[Any], Grid]:
    """By nibabel: unlike ITK it does not put zeros in the place of what is missing in a file that was cut off."""
    import nibabel

    image: Any = nibabel.load(path)
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise UserError(f"{path} has the shape {shape}; expected a label map of two or three dimensions")
    spacing = tuple(float(size) for size in image.header.get_zooms()[: len(shape)])
    to_left_posterior = np.diag([-1.0, -1.0, 1.0])
    direction = to_left_posterior @ image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    data = np.asanyarray(image.dataobj).reshape(shape, order="F").T if voxels else NO_VOXELS
    return data, Grid(shape[::-1], spacing[::-1], direction if len(shape) == 3 else None)


def _read_by_itk(path: Path, voxels: bool) -> tuple[NDArray[Any], Grid]:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    shape, dimension = reader.GetSize()[::-1], reader.GetDimension()
    if reader.GetNumberOfComponents() != 1 or dimension not in (2, 3):
        raise UserError(
            f"{path} has {dimension} dimensions and {reader.GetNumberOfComponents()} channels; expected a "
            "label map of two or three dimensions and one channel"
        )
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)
    data = SimpleITK.GetArrayFromImage(reader.Execute()) if voxels else NO_VOXELS
    return data, Grid(shape, reader.GetSpacing()[::-1], direction)


def _read_picture(path: Path, voxels: bool) -> tuple[NDArray[Any], Grid]:
    from PIL import Image

    with Image.open(path) as image:
        grid = Grid(image.size[::-1])
        if not voxels:
            return NO_VOXELS, grid
        data = np.asarray(image) if image.mode != "1" else np.asarray(image.convert("L")) > 0  # else True may be 255
        has_alpha = image.mode in ("LA", "PA", "RGBA")
    return data[..., :-1] if has_alpha else data, grid


def _read_tiff(path: Path, voxels: bool) -> tuple[NDArray[Any], Grid]:
    """2D, coloured or 3D; of the latter nnU-Net keeps the spacing in a JSON file beside it."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        shape = series.shape[:-1] if series.axes.endswith("S") else series.shape
        data = series.asarray() if voxels else NO_VOXELS
    if len(shape) not in (2, 3):
        raise UserError(f"{path} has the shape {shape}; expected a label map of two or three dimensions")
    beside = _spacing_file(path)
    spacing = json.loads(beside.read_text(encoding="utf-8"))["spacing"] if beside.is_file() else None
    return data, Grid(tuple(shape), tuple(map(float, spacing)) if spacing else None)


def _spacing_file(path: Path) -> Path:
    return path.with_name(f"{case_of(path)}.json")


# --- writing ---


def write_label_map(path: Path, labels: LabelMap, like: Path) -> None:
    """Writes labels in the format and on the grid of another file, atomically; pictures have one channel.

    Args:
        path: ends as `like` does.
        labels: of the shape of `like`.
        like: where format, spacing, origin and direction are taken from.
    """
    ending = ending_of(like)
    with atomic_path(path) as temporary:
        if ending in NIFTI:
            _write_nifti(temporary, labels, like)
        elif ending in PICTURES:
            from PIL import Image

            Image.fromarray(labels).save(temporary)
        elif ending in TIFF:
            import tifffile

            tifffile.imwrite(temporary, labels, photometric="minisblack", compression="zlib")
        else:
            _write_by_itk(temporary, labels, like)
    if ending in TIFF and _spacing_file(like).is_file():
        shutil.copyfile(_spacing_file(like), _spacing_file(path))


def _write_nifti(path: Path, labels: LabelMap, like: Path) -> None:
    import nibabel

    image: Any = nibabel.load(like)
    image = type(image)(labels.T.reshape(image.shape, order="F"), image.affine, image.header)
    image.set_data_dtype(labels.dtype)
    image.header.set_slope_inter(1, 0)
    nibabel.save(image, path)


def _write_by_itk(path: Path, labels: LabelMap, like: Path) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(labels)
    image.CopyInformation(SimpleITK.ReadImage(str(like)))
    SimpleITK.WriteImage(image, str(path), True)
