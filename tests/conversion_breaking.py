"""Ways to break the sources that the tests convert."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conversion_sources import COLUMNS, ROWS, body, write_labelme, write_png, write_volume

FLARE = "Training/FLARE22_LabeledCase50"
CT = f"{FLARE}/images/FLARE22_Tr_0001_0000.nii.gz"
STAS = "SEG_Train_Datasets"


def rewrite_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def cut(path: Path) -> None:
    """Keeps the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def edit_points(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[Path], None]:
    return lambda root: rewrite_json(root / "train-gt.json", lambda content: change(content["points"]))


def first_point(**changes: Any) -> Callable[[Path], None]:
    return edit_points(lambda points: points[0].update(changes))


def point_at_the_data(root: Path) -> None:
    """Makes the header of the stack name another file."""
    data = (root / "train_stack.mha").read_bytes()
    (root / "train_stack.mha").write_bytes(data.replace(b"= LOCAL", b"= ../../secret.raw"))


def blacken(root: Path) -> None:
    """Makes a slice of the stack zero."""
    path = root / "train_stack.mha"
    data = path.read_bytes()
    size = (ROWS + 2) * (COLUMNS + 3) * 3
    path.write_bytes(data[:-size] + bytes(size))


def link_out(root: Path, name: str) -> None:
    """Replaces a file by a link to a copy outside of the source."""
    outside = root.parent / "outside"
    (root / name).rename(outside)
    (root / name).symlink_to(outside)


def into_subfolder(name: str) -> Callable[[Path], None]:
    """Moves the files of a folder into a folder below it."""

    def move(root: Path) -> None:
        files = list((root / name).iterdir())
        (root / name / "sub").mkdir()
        for path in files:
            path.rename(root / name / "sub" / path.name)

    return move


def volume_with(name: str, values: np.ndarray, **geometry: Any) -> Callable[[Path], None]:
    return lambda root: write_volume(root / name, values, **geometry) and None


def picture_with(name: str, values: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda root: write_png(root / name, values, **options) and None


def outlined(*shapes: dict[str, Any], **more: Any) -> Callable[[Path], None]:
    return lambda root: write_labelme(root / STAS / "Train_Annotations/00000000.json", list(shapes), **more) and None


def without_origin(name: str) -> Callable[[Path], None]:
    """Puts NaN into the header of a volume, in the place of where it lies."""

    def spoil(root: Path) -> None:
        data = bytearray(gzip.decompress((root / name).read_bytes()))
        for first in (268, 292):  # qoffset_x, and the last number of srow_x
            data[first : first + 4] = np.float32(np.nan).tobytes()
        (root / name).write_bytes(gzip.compress(bytes(data)))

    return spoil


def skewed(root: Path) -> None:
    """A NIfTI file whose axes are not at right angles, which SimpleITK refuses."""
    import nibabel

    affine = np.eye(4)
    affine[0, 1] = 0.5
    nibabel.save(nibabel.Nifti1Image(body(0).transpose(), affine), root / CT)
