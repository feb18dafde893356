"""Label maps as files: their grids, their voxels as whole numbers, and writing one like another.

Formats are those of nnU-Net's readers. Arrays have the axes z, y, x (in 2D y, x), as nnU-Net's have, and hold the
smallest unsigned integers that will do, so that a volume takes a byte per voxel and not the four of nnU-Net's readers.
"""

from __future__ import annotations

import errno
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
GIPL = ".gipl"
ENDINGS = (*NIFTI, ".mha", ".nrrd", GIPL, *PICTURES, *TIFF)  # what is named in none of the above is read by ITK

LabelMap = NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
        shape: z, y, x.
        spacing: in the same order, in mm; None for files that know none, which are measured in pixels.
        directions: one row for each axis of the world (left, posterior, superior), its columns x, y, z; twice: as
            nibabel and as ITK understand the header, with which nnU-Net reads. Empty if unknown.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    directions: tuple[NDArray[np.float64], ...] = ()

    def difference(self, other: Grid) -> str:
        """In words how this grid differs from another, or "" if voxels can be compared one by one.

        Directions are those of one grid if either library says so: which of the two wrote a prediction is unknown, and
        where they understand its reference differently, only the one that wrote it finds the same direction in both.
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        if self.spacing and other.spacing and not np.allclose(self.spacing, other.spacing, rtol=1e-3):
            return f"spacing {_rounded(self.spacing)} against {_rounded(other.spacing)}"
        pairs = [(a, b) for a, b in zip(self.directions, other.directions, strict=False) if a.shape == b.shape]
        if pairs and not any(np.allclose(a, b, atol=1e-2) for a, b in pairs):
            return "another orientation"
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


def count_white(path: Path) -> tuple[int, int]:
    """How many pixels of a file are as bright as can be, and how many others are above 0: masks have few of these.

    Of a picture with colours or with two values whatever is above 0 is white. Nothing is in one with a palette, whose
    values are labels, and in formats that are no pictures.

    Raises:
        UserError: the file cannot be read.
    """
    from PIL import Image

    voxels, grid = _guarded(path, voxels=True)
    coloured = False
    if voxels.ndim > len(grid.shape):
        coloured = bool((voxels != voxels[..., :1]).any())
        voxels = voxels.max(axis=-1)
    above = int(np.count_nonzero(voxels))
    if coloured or voxels.dtype == bool:
        return above, 0
    may_be_white = ending_of(path) in (*PICTURES, *TIFF)
    if ending_of(path) in PICTURES:
        with Image.open(path) as image:
            may_be_white = image.mode != "P"
    brightest = voxels.max(initial=0)
    white = int(np.count_nonzero(voxels == brightest)) if may_be_white and brightest in (2**8 - 1, 2**16 - 1) else 0
    return white, above - white


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
    if grid.directions and not any(np.isfinite(direction).all() for direction in grid.directions):
        raise UserError(f"{path} has NaN in the direction of its header; expected finite numbers; write it again")
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
    data = np.asanyarray(image.dataobj).reshape(shape, order="F").T if voxels else NO_VOXELS
    return data, Grid(shape[::-1], spacing[::-1], _nifti_directions(path, image.affine) if len(shape) == 3 else ())


def _nifti_directions(path: Path, affine: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """By nibabel and by ITK, which differ where no direction is stated, or two that disagree."""
    to_left_posterior = np.diag([-1.0, -1.0, 1.0])
    by_nibabel = to_left_posterior @ affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    try:
        return by_nibabel, _direction(_header_by_itk(path))[:3, :3]
    except RuntimeError:  # ITK reads no sheared grid, so that nobody reads this file but nibabel
        return by_nibabel, by_nibabel


def _header_by_itk(path: Path) -> Any:
    """A reader that knows the header; of an unusual one ITK says on stderr what nobody could do anything about."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    warned = reader.GetGlobalWarningDisplay()
    reader.GlobalWarningDisplayOff()
    try:
        reader.ReadImageInformation()
    finally:
        reader.SetGlobalWarningDisplay(warned)
    return reader


def _direction(reader: Any) -> NDArray[np.float64]:
    return np.array(reader.GetDirection()).reshape(reader.GetDimension(), reader.GetDimension())


def _read_by_itk(path: Path, voxels: bool) -> tuple[NDArray[Any], Grid]:
    import SimpleITK

    reader = _header_by_itk(path)
    shape, dimension = reader.GetSize()[::-1], reader.GetDimension()
    if reader.GetNumberOfComponents() != 1 or dimension not in (2, 3):
        raise UserError(
            f"{path} has {dimension} dimensions and {reader.GetNumberOfComponents()} channels; expected a "
            "label map of two or three dimensions and one channel"
        )
    directions = () if ending_of(path) == GIPL else (_direction(reader),) * 2  # that format has none
    data = SimpleITK.GetArrayFromImage(reader.Execute()) if voxels else NO_VOXELS
    return data, Grid(shape, reader.GetSpacing()[::-1], directions)


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
    """2D, coloured or 3D; of the latter nnU-Net keeps the spacing in a JSON file beside it.

    Formats of several files are not read as such, since these may be any files that the contents name.
    """
    import tifffile

    with tifffile.TiffFile(path, _multifile=False, is_mmstack=False, is_ndtiff=False) as file:
        series = file.series[0]
        if file.is_ome and series.kind != "ome" and "FileName=" in (file.ome_metadata or ""):
            raise UserError(
                f"{path} says that parts of it are in other files; expected a TIFF file that holds all of its label "
                "map; save it as a single one"
            )
        shape = series.shape[:-1] if series.axes.endswith("S") else series.shape
        data = series.asarray() if voxels else NO_VOXELS
    if len(shape) not in (2, 3):
        raise UserError(f"{path} has the shape {shape}; expected a label map of two or three dimensions")
    return data, Grid(tuple(shape), _spacing_beside(path, len(shape)))


def _spacing_beside(path: Path, dimensions: int) -> tuple[float, ...] | None:
    file = _spacing_file(path)
    if file is None:
        return None
    try:
        spacing = tuple(map(float, json.loads(file.read_text(encoding="utf-8"))["spacing"]))
        if len(spacing) == dimensions and all(0 < size < math.inf for size in spacing):
            return spacing
        found = f"the spacing {spacing}"
    except (OSError, ValueError, KeyError, TypeError):
        found = "no spacing that can be read"
    raise UserError(
        f'{file} holds {found}; expected {{"spacing": [...]}} with {dimensions} sizes above 0 in mm; correct it, or '
        "move it away to measure in pixels"
    )


def _spacing_file(path: Path) -> Path | None:
    """The JSON file beside a TIFF file, if there is one."""
    beside = path.with_name(f"{case_of(path)}.json")
    return beside if ending_of(path) in TIFF and beside.is_file() else None


# --- writing ---


def files_like(path: Path) -> list[str]:
    """The names of the files that are written for a label map like this one."""
    return [file.name for file in (path, _spacing_file(path)) if file]


def write_label_map(path: Path, labels: LabelMap, like: Path) -> None:
    """Writes labels in the format and on the grid of another file, whole or not at all; pictures have one channel.

    Args:
        path: ends as `like` does.
        labels: of the shape of `like`.
        like: where format, spacing, origin and direction are taken from.

    Raises:
        OSError: the file cannot be written.
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
    if spacing_file := _spacing_file(like):
        with atomic_path(path.with_name(f"{case_of(path)}.json")) as temporary:
            shutil.copyfile(spacing_file, temporary)


def _write_nifti(path: Path, labels: LabelMap, like: Path) -> None:
    import nibabel

    image: Any = nibabel.load(like)
    image = type(image)(labels.T.reshape(image.shape, order="F"), image.affine, image.header)
    image.set_data_dtype(labels.dtype)
    image.header.set_slope_inter(1, 0)
    nibabel.save(image, path)


def _write_by_itk(path: Path, labels: LabelMap, like: Path) -> None:
    import SimpleITK

    from nnunet_semi.labelmaps.damage import refuse_incomplete

    image = SimpleITK.GetImageFromArray(labels)
    image.CopyInformation(SimpleITK.ReadImage(str(like)))
    try:
        SimpleITK.WriteImage(image, str(path), True)
        refuse_incomplete(path)  # of GIPL ITK does not tell that the disk is full
    except (RuntimeError, Unusable) as error:
        raise OSError(errno.EIO, f"it cannot be written ({_reason(error)})", str(path)) from error
