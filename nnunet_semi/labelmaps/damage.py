"""What is wrong with a volume file though SimpleITK reads it without a word.

It fills up a truncated NIfTI file with rubbish, turns NaN in it into 0, and opens any other file that a header names.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunet_semi import mha
from nnunet_semi.errors import Problem, Unusable

CHUNK = 1 << 24
GIPL_HEADER = 256  # bytes


def refuse_damaged(path: Path) -> None:
    """Raises `Unusable` for a file that is truncated, damaged, points to other files, or is NIfTI with NaN."""
    refuse_incomplete(path)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _refuse_undefined(path)


def refuse_incomplete(path: Path) -> None:
    """Raises `Unusable` for a file that is truncated, damaged, or points to other files; reads all of it."""
    name = path.name.lower()
    if name.endswith(".mha"):
        mha.refuse_incomplete(mha.read_header(path))
    elif name.endswith(".nrrd"):
        _refuse_detached(path)
    else:
        _refuse_truncated(path, _gipl_size if name.endswith(".gipl") else _nifti_size)


def _refuse_detached(path: Path) -> None:
    with path.open("rb") as file:
        for line in iter(lambda: file.readline(CHUNK).strip(), b""):
            if line.lower().startswith((b"data file:", b"datafile:")):
                found = f"a header that points to other files ({line.decode('latin-1')})"
                raise Unusable(Problem(path, found, "the data in the same file"))


def _refuse_truncated(path: Path, promised: Any) -> None:
    try:
        needed = promised(path)
        present = _unpacked_size(path) if path.name.lower().endswith(".gz") else path.stat().st_size
    except Exception as error:  # of zlib, gzip, nibabel, SimpleITK
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise Unusable(Problem(path, f"a damaged file ({reason[0].strip()})", "an intact volume")) from error
    if present < needed:
        raise Unusable(Problem(path, f"{present} of {needed} bytes", "a complete volume; fetch it again"))


def _gipl_size(path: Path) -> int:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    pixel = sitk.Image([1, 1], reader.GetPixelID())
    return GIPL_HEADER + int(np.prod(reader.GetSize())) * pixel.GetSizeOfPixelComponent()


def _nifti_size(path: Path) -> int:
    """By the type on disk, which a scaling hides from SimpleITK."""
    image: Any = nibabel.load(path)
    return image.dataobj.offset + int(np.prod(image.dataobj.shape)) * image.dataobj.dtype.itemsize


def _unpacked_size(path: Path) -> int:
    """Reads a .gz file to its end, where its length and checksum are compared."""
    with gzip.open(path) as file:
        return sum(len(chunk) for chunk in iter(lambda: file.read(CHUNK), b""))


def _refuse_undefined(path: Path) -> None:
    image: Any = nibabel.load(path)
    if image.dataobj.dtype.kind == "f":
        refuse_undefined(path, image.dataobj.get_unscaled())


def refuse_undefined(path: Path, values: np.ndarray) -> None:
    """Raises `Unusable` where a value is NaN or infinite."""
    if values.dtype.kind in "fc" and not all(np.isfinite(part).all() for part in values):
        raise Unusable(Problem(path, "values that are NaN or infinite", "numbers; replace them by what is meant"))
