"""One orientation for all volumes, and the way back to the grid each of them came with."""

from __future__ import annotations

import base64
import gzip
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

from nnunet_semi.errors import Problem, Unusable

ORIENTATION = "LPS"  # axes point to the left, back and head of the patient: axial slices as radiologists see them
OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}


@dataclass(frozen=True)
class Reorientation:
    """How the grid of a NIfTI file became that of a volume in a dataset; lists are in the order x, y, z.

    Attributes:
        file: what a prediction is called on the grid of the file.
        size: of the file, in voxels.
        axes: which axis of the file each axis of the reoriented volume is.
        flipped: whether it runs the other way; applied after `axes`.
        start: first voxel of the box, counted in the reoriented volume.
        box: size of the box, which is the size of the volume in the dataset.
        header: of the file, its bytes in base64.
    """

    file: str
    size: tuple[int, ...]
    axes: tuple[int, ...]
    flipped: tuple[bool, ...]
    start: tuple[int, ...]
    box: tuple[int, ...]
    header: str

    def as_json(self) -> dict[str, Any]:
        """For the file beside the case."""
        return asdict(self)

    @staticmethod
    def from_json(path: Path, content: dict[str, Any]) -> Reorientation:
        """What `as_json` gave.

        Raises:
            Unusable: something else; `path` is where it came from.
        """
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
            geometry = Reorientation(**fields)
            geometry.back(np.zeros(geometry.box, np.uint8))
            geometry.nifti_header()
        except Exception as error:
            found = f"a geometry that cannot be understood ({error})"
            raise Unusable(Problem(path, found, "one that `nnunet_semi convert` wrote")) from error
        file = str(geometry.file)
        if Path(file).name != file or file.startswith(".") or not file.endswith(".nii.gz"):
            raise Unusable(Problem(path, f"the file name {file!r}", "a name without folders that ends in .nii.gz"))
        return geometry

    def back(self, values: np.ndarray) -> np.ndarray:
        """Values of the volume (x, y, z) on the grid of the file, with 0 outside of the box."""
        whole = np.zeros([self.size[axis] for axis in self.axes], values.dtype)
        whole[tuple(slice(first, first + count) for first, count in zip(self.start, self.box, strict=True))] = values
        turned = np.flip(whole, tuple(axis for axis, flipped in enumerate(self.flipped) if flipped))
        return turned.transpose(np.argsort(self.axes))

    def nifti_header(self) -> nibabel.Nifti1Header:
        """The header of the file, bit for bit."""
        return nibabel.Nifti1Header(base64.b64decode(self.header))

    def restored(self, values: np.ndarray) -> nibabel.Nifti1Image:
        """The image of a prediction (x, y, z) on the grid of the file."""
        header = self.nifti_header()
        header.set_data_dtype(values.dtype)
        header["scl_slope"], header["scl_inter"] = 1, 0
        header["cal_min"], header["cal_max"] = 0, 0
        return nibabel.Nifti1Image(self.back(values), None, header)


def axes_to(code: str, wanted: str = ORIENTATION) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Which axis of an image with an orientation code each axis of the wanted one is, and whether it is flipped."""
    axes = tuple(next(i for i, letter in enumerate(code) if letter in (w, OPPOSITE[w])) for w in wanted)
    return axes, tuple(code[axis] != letter for axis, letter in zip(axes, wanted, strict=True))


def orientation(image: sitk.Image) -> str:
    """The code of the axes, such as LPS for an identity direction."""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())


def header_of(path: Path) -> str:
    """The header of a NIfTI file in base64; of the second version there is none, because SimpleITK cannot read it."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
        return base64.b64encode(file.read(nibabel.Nifti1Header.sizeof_hdr)).decode("ascii")
