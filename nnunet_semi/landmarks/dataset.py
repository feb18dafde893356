"""The landmark files of a dataset's training cases, all of them looked at before training starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from nnunet_semi import landmark_files, raw
from nnunet_semi.errors import EnvironmentNotReady, UserError
from nnunet_semi.geometry import Geometry

FOLDER = "landmarksTr"


def landmark_folder(dataset: str) -> Path:
    """landmarksTr of a dataset: the one in nnUNet_raw, or, where training has no raw data, in nnUNet_preprocessed.

    Raises:
        EnvironmentNotReady: neither is there.
    """
    copy = raw.nnunet_folder(raw.PREPROCESSED) / dataset / FOLDER
    try:
        original = raw.nnunet_folder(raw.RAW) / dataset / FOLDER
    except EnvironmentNotReady:
        original = copy
    for folder in (original, copy):
        if folder.is_dir():
            return folder
    raise EnvironmentNotReady(
        f"{original} does not exist; landmarks are trained from one JSON file per case in that folder (`nnunet_semi "
        f"convert` writes them); where nnUNet_raw is not at hand, copy it to {copy}"
    )


def read_landmarks(folder: Path, cases: Iterable[str], names: Sequence[str]) -> dict[str, landmark_files.Landmarks]:
    """Case → landmarks.

    Args:
        folder: with CASE.json for every case.
        cases: which to read.
        names: of the landmarks, in the order of their labels.

    Raises:
        UserError: a file is missing or wrong, or the files mix 2D and 3D.
    """
    found = {}
    for case in cases:
        path = folder / f"{case}.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist; every case in imagesTr needs one, with null for what is missing")
        found[case] = landmark_files.read(path)
        landmark_files.check_names(path, found[case].names, names)
    return found


def check_geometry(path: Path, landmarks: Geometry, image: Geometry) -> None:
    """Refuses landmarks that were placed in another image than the preprocessed one.

    Raises:
        UserError: size or spacing differ, or, where the file knows them, origin or direction.
    """
    if landmarks.size != image.size:
        raise _other_image(path, "size", landmarks.size, image.size)
    for name in ("spacing", "origin", "direction"):
        own, read = getattr(landmarks, name), getattr(image, name)
        if not np.allclose(own, read, rtol=1e-3, atol=1e-3 * max(image.spacing)):
            raise _other_image(path, name, own, read)


def _other_image(path: Path, name: str, own: Sequence[float], read: Sequence[float]) -> UserError:
    return UserError(
        f"{path} has the {name} {list(own)} (x first), but the preprocessed image of this case {list(read)}; correct "
        "the file, or preprocess the dataset again if its images were changed"
    )
