"""The image that belongs to a label map or a file of landmarks, and its values as shades of grey."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nnunet_semi.errors import UserError
from nnunet_semi.raw import RAW

ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
PICTURES = (".png", ".bmp", ".jpg", ".jpeg")
ROLES = re.compile(r"(?:labels|landmarks|points)(Tr|Ts|Un|Va)")

Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An image as shades of grey.

    Attributes:
        values: (z, )y, x.
        spacing: in mm in the same order; 1 where the format knows none.
    """

    values: Grey
    spacing: tuple[float, ...]


def find_image(reference: Path, case: str, images: Path | None = None) -> Path | None:
    """The first channel of a case, where a dataset in nnU-Net's layout has it; None if it is not there.

    Args:
        reference: the label map or the file of landmarks, in labelsTr, landmarksTs and the like, or in the
            gt_segmentations of a preprocessed dataset, whose images are in nnUNet_raw.
        case: its name.
        images: the only folder to look into, where it is known.
    """
    folders = [images] if images else _folders(reference)
    names = [f"{case}{channel}{ending}" for channel in ("_0000", "") for ending in ENDINGS]
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _folders(reference: Path) -> list[Path]:
    folder = reference.parent
    role = ROLES.fullmatch(folder.name)
    if role:
        return [folder.with_name(f"images{role[1]}")]
    if folder.name == "gt_segmentations":  # of nnUNet_preprocessed, beside which nnUNet_raw often is
        beside = folder.parent.parent.with_name(RAW)
        return [Path(raw, folder.parent.name, "imagesTr") for raw in (os.environ.get(RAW), beside) if raw]
    return [folder.with_name(f"images{role}") for role in ("Tr", "Ts")]


def read_picture(path: Path) -> Picture:
    """An image of any format that nnU-Net reads, or JPEG, between its darkest and brightest percent.

    Raises:
        UserError: it cannot be read.
    """
    try:
        values, spacing = _read_flat(path) if path.name.lower().endswith(PICTURES) else _read_by_itk(path)
    except Exception as error:  # every library has exceptions of its own
        reason = next(iter(str(error).strip().splitlines()[-1:]), type(error).__name__)
        raise UserError(f"the image {path} cannot be read ({reason[:200]}); restore it or make it again") from error
    return Picture(as_grey(values), spacing)


def as_grey(values: np.ndarray) -> Grey:
    """Values as 0 to 255, the first and the last percent of them cut off."""
    values = np.nan_to_num(values.astype(np.float32, copy=False))
    low, high = np.percentile(values[(slice(None, None, 2),) * values.ndim], (1, 99)) if values.size else (0, 1)
    return (np.clip((values - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)


def _read_flat(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    with Image.open(path) as picture:
        values = np.asarray(picture if picture.mode.startswith(("I", "F")) else picture.convert("L"))
    return values, (1.0, 1.0)


def _read_by_itk(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    values = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        values = values.mean(axis=-1)
    return values, tuple(image.GetSpacing()[::-1])
