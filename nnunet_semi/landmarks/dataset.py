"""The landmark files of a dataset's training cases, all of them looked at before training starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

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
        UserError: the two grids differ in size, spacing, origin or direction.
    """
    said = landmarks.difference(image)
    if said:
        raise UserError(
            f"{path} has the {said} of the preprocessed image of this case (x first); correct the file, or preprocess "
            "the dataset again if its images were changed"
        )
