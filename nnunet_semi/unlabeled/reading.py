"""Reads the images of an unlabeled case and says in words what is wrong with them."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Sequence
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semi.raw import channel_names

SPACING_OF_2D = 900  # nnU-Net's readers give a 2D image a slice distance 999 times its pixel size
SIZE_OF_NIFTI2_HEADER = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))


class BadCase(Exception):
    """A case that training cannot use; the message says why."""


class CheckedPlans(PlansManager):
    """Plans whose reader refuses, with a reason, what must not reach a preprocessor.

    The check sits in the reader so that a preprocessor of the user's own is checked as well, and no file is read twice.
    """

    def __init__(self, plans: dict[str, Any], dataset_json: dict[str, Any]) -> None:
        super().__init__(plans)
        self.channels = channel_names(dataset_json)

    @property
    def image_reader_writer_class(self) -> type[BaseReaderWriter]:
        """nnU-Net's reader for this dataset, checking."""
        reader: Any = super().image_reader_writer_class
        plans = self

        class CheckedReader(reader):
            def read_images(self, image_fnames: Sequence[str]) -> tuple[np.ndarray, dict]:
                refuse_broken_files(image_fnames)
                try:
                    data, properties = super().read_images(image_fnames)
                except Exception as error:
                    raise BadCase(why_unreadable(reader(), image_fnames, error)) from error
                plans.check_image(data, properties["spacing"])
                return data, properties

        return CheckedReader

    def check_image(self, data: np.ndarray, spacing: Sequence[float]) -> None:
        """Raises BadCase for what cannot be an unlabeled case of this dataset.

        Args:
            data: channels × z × y × x, as nnU-Net's readers give it.
            spacing: of z, y and x in millimetres.
        """
        if len(data) != len(self.channels):
            raise BadCase(f"it has {len(data)} channel(s); expected {len(self.channels)} ({', '.join(self.channels)})")
        if 0 in data.shape:
            raise BadCase(f"it is empty: its shape is {data.shape[1:]}")
        self._check_dimension(data.shape[1:], spacing)
        if not all(np.isfinite(value) and value > 0 for value in spacing):
            raise BadCase(f"its spacing is {tuple(spacing)}; expected positive numbers")
        for name, channel in zip(self.channels, data, strict=True):
            unusable = channel.size - np.count_nonzero(np.isfinite(channel))
            if unusable:
                raise BadCase(f"{unusable} of {channel.size} values of its channel {name} are NaN or infinite")
        if all(channel.min() == channel.max() for channel in data):
            raise BadCase(f"it is empty: all values are {data.flat[0]:g}")

    def _check_dimension(self, shape: Sequence[int], spacing: Sequence[float]) -> None:
        slices = self.plans.get("original_median_shape_after_transp", [None])[0]
        if slices is None:
            return
        volumes_planned = any(len(c.get("patch_size", [])) == 3 for c in self.plans["configurations"].values())
        if slices == 1 and not volumes_planned and shape[0] != 1:
            raise BadCase(f"it is a volume of shape {tuple(shape)}; the labeled cases are 2D images")
        if slices > 1 and shape[0] == 1 and spacing[0] > SPACING_OF_2D * max(spacing[1:]):
            raise BadCase(f"it is a 2D image of shape {tuple(shape[1:])}; the labeled cases are volumes")


def refuse_broken_files(files: Sequence[str]) -> None:
    """Raises BadCase for files that are not there or empty, or broken in a way that their reader would not tell.

    ITK puts zeros in the place of what is missing in a NIfTI that was cut off, as by a broken download, and in the
    place of NaN and infinite values.
    """
    for file in files:
        name = os.path.basename(file)
        if not os.path.exists(file):
            raise BadCase(f"{name} is a link to a file that does not exist")
        if os.path.getsize(file) == 0:
            raise BadCase(f"{name} is empty (0 bytes)")
        try:
            if name.endswith((".nii.gz", ".nii")):
                _refuse_broken_nifti(file, name)
        except (EOFError, OSError, zlib.error) as error:
            raise BadCase(f"{name} is cut off or cannot be opened ({brief(error)})") from error


def _refuse_broken_nifti(file: str, name: str) -> None:
    with open(file, "rb") as start:
        compressed = start.read(2) == b"\x1f\x8b"
    with gzip.open(file) if compressed else open(file, "rb") as stream:
        version = nibabel.Nifti2Image if stream.read(4) in SIZE_OF_NIFTI2_HEADER else nibabel.Nifti1Image
        stream.seek(0)
        try:
            image: Any = version.from_stream(stream)
        except (HeaderDataError, ImageFileError, WrapStructError):
            return  # no NIfTI; the reader will say so
        voxels = image.dataobj
        size, expected = 0, math.prod(voxels.shape) * voxels.dtype.itemsize
        unusable = 0
        stream.seek(voxels.offset)
        while block := stream.read(min(1 << 20, expected - size)):
            size += len(block)
            if voxels.dtype.kind == "f" and len(block) % voxels.dtype.itemsize == 0:
                unusable += int(np.count_nonzero(~np.isfinite(np.frombuffer(block, voxels.dtype))))
        stream.read(1)  # where the archive ends here, its checksum is compared
    if size < expected:
        raise BadCase(f"{name} is cut off: it holds {size} of {expected} bytes of image")
    if unusable:
        raise BadCase(f"{unusable} of {math.prod(voxels.shape)} values of {name} are NaN or infinite")


def why_unreadable(reader: BaseReaderWriter, files: Sequence[str], error: Exception) -> str:
    """The reason in words why `reader` failed with `error` on the files of a case, found by reading them one by one."""
    seen = {}
    for file in files:
        name = os.path.basename(file)
        try:
            data, properties = reader.read_images([file])
        except Exception as reason:
            return f"{name} cannot be read by {type(reader).__name__} ({brief(reason, os.path.dirname(file))})"
        seen[name] = data.shape[1:], tuple(float(x) for x in properties["spacing"])
    for what, position in (("shape", 0), ("spacing", 1)):
        if len({found[position] for found in seen.values()}) > 1:
            found = ", ".join(f"{name} {values[position]}" for name, values in seen.items())
            return f"its channels differ in {what}: {found}"
    return f"its channels cannot be read together ({brief(error)})"


def brief(error: Exception, folder: str = "", longest: int = 200) -> str:
    """What an error says, in a line: of ITK's many lines the one that says ERROR, else the first; its class if none.

    Args:
        error: any exception.
        folder: left out where the message names files in it.
        longest: characters.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = next((line for line in lines if "ERROR: " in line), lines[0]).rpartition("ERROR: ")[2]
    return re.sub(r"\(0x\w+\)", "", line).replace(os.path.join(folder, ""), "")[:longest]
