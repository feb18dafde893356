"""NIfTI, NRRD, MHA and GIPL files through SimpleITK, which writes half a .nii.gz without a complaint on a full disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_semi.dataset_conversion.plan import Output
from nnunet_semi.dataset_conversion.raster import Raster
from nnunet_semi.errors import Problem, Unusable
from nnunet_semi.labelmaps.damage import refuse_damaged, refuse_undefined

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")


def read_image(path: Path) -> Raster:
    """A volume, or a 2D image with a spacing.

    Raises:
        Unusable: unreadable or truncated, not 2 or 3 dimensions, several values per voxel, or NaN.
    """
    raster = as_raster(read_volume(path))
    refuse_undefined(path, raster.values)
    return raster


read_label = read_image


def as_raster(image: sitk.Image) -> Raster:
    """A volume with its geometry; its values are not copied."""
    geometry = image.GetSpacing(), image.GetDirection(), image.GetOrigin()
    return Raster(sitk.GetArrayViewFromImage(image), 1, True, lambda other: volume(like(image, other)), *geometry)


def read_volume(path: Path, dimensions: tuple[int, ...] = (2, 3)) -> sitk.Image:
    """A complete image with one value per voxel and a finite grid.

    Raises:
        Unusable: it is none.
    """
    refuse_damaged(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if reader.GetDimension() not in dimensions:
            kinds = " or ".join(map(str, dimensions))
            raise Unusable(Problem(path, f"{len(size)} dimensions {size}", f"{kinds}, with one file per channel"))
        if reader.GetNumberOfComponents() != 1:
            found = f"{reader.GetNumberOfComponents()} values per voxel"
            raise Unusable(Problem(path, found, "one, with one file per channel"))
        if not np.isfinite([*reader.GetSpacing(), *reader.GetOrigin(), *reader.GetDirection()]).all():
            found = "a header with NaN or infinity in its spacing, origin or direction"
            raise Unusable(Problem(path, found, "finite numbers; write the header again"))
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise Unusable(Problem(path, f"a file that cannot be read ({reason})", "an intact volume")) from error
    return image


def like(image: sitk.Image, values: np.ndarray) -> sitk.Image:
    """Other values on the grid of an image."""
    other = sitk.GetImageFromArray(values)
    other.CopyInformation(image)
    return other


def volume(image: sitk.Image) -> Output:
    """Writes an image, compressed where the format can, and makes sure that it is complete.

    The output raises OSError, for example where the disk is full.
    """

    def write(target: Path) -> None:
        try:
            sitk.WriteImage(image, str(target), not target.name.endswith(".gipl"))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise OSError(errno.EIO, reason, str(target)) from error
        needed = image.GetNumberOfPixels() * image.GetSizeOfPixelComponent() * image.GetNumberOfComponentsPerPixel()
        if _written(target, needed) < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    return write


def _written(path: Path, needed: int) -> int:
    """Bytes of data in a file that was just written, by its size or what the end of a .gz states."""
    if path.name.endswith((".nrrd", ".mha")):
        return needed  # the writers of these formats complain by themselves
    if not path.name.endswith(".gz"):
        return path.stat().st_size
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        stated = int.from_bytes(file.read(4), "little")
    header = (stated - needed) % (1 << 32)  # the size is stated modulo 4 GB
    return needed if header < 1 << 16 else 0
