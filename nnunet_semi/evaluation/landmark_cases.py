"""Landmarks of references and predictions, case by case: of two folders of JSON files, or of a challenge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_semi import landmark_files
from nnunet_semi.errors import UserError
from nnunet_semi.geometry import Geometry
from nnunet_semi.landmark_files import Landmarks
from nnunet_semi.orthodontics import NAMES, Cephalogram, read_points
from nnunet_semi.raw import name_some

NO_CASES = ("dataset.json", "plans.json", "summary.json", "predict_from_raw_data_args.json")  # beside landmarks


@dataclass(frozen=True)
class LandmarkCase:
    """The landmarks of one case.

    Attributes:
        case: its name.
        reference: where they are; those outside of the image count as missing.
        prediction: where they were found, the same landmarks.
        reference_file: where the reference was read from.
        prediction_file: where the prediction was read from.
    """

    case: str
    reference: Landmarks
    prediction: Landmarks
    reference_file: Path
    prediction_file: Path

    @property
    def errors(self) -> NDArray[np.float64]:
        """The radial error of each landmark in mm; NaN where it is missing in a file."""
        return np.linalg.norm(self.reference.world - self.prediction.world, axis=1)

    @property
    def present(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which landmarks the reference has, and which the prediction."""
        return ~np.isnan(self.reference.voxel).any(axis=1), ~np.isnan(self.prediction.voxel).any(axis=1)


def read_cases(reference: Path, prediction: Path, chill: bool = False) -> tuple[list[LandmarkCase], list[str]]:
    """The cases of two folders, or the one of two files, and sentences about what is left out.

    Args:
        reference: its cases are asked for.
        prediction: may have more.
        chill: leave out references without prediction.

    Raises:
        UserError: names everything that does not fit, at once.
    """
    if reference.is_file() and prediction.is_file():
        pairs = {reference.name.removesuffix(".json"): (reference, prediction)}
        notes: list[str] = []
    else:
        pairs, notes = _pairs(_files(reference), _files(prediction), (reference, prediction), chill)
    cases: list[LandmarkCase] = []
    problems = []
    for case, (first, second) in pairs.items():
        try:
            cases.append(_case(case, first, second, cases[0].reference.names if cases else None))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"{len(problems)} of {len(pairs)} cases cannot be scored: {name_some(problems, 10)}")
    return cases, notes


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds a JSON file of landmarks for each case")
    found = {
        path.name.removesuffix(".json"): path
        for path in sorted(folder.glob("*.json"))
        if path.name not in NO_CASES and not path.name.startswith(".")
    }
    if not found:
        raise UserError(f"{folder} holds no landmarks; expected a file CASE.json for each case, as in landmarksTr")
    return found


def _pairs(
    references: Mapping[str, Path], predictions: Mapping[str, Path], folders: tuple[Path, Path], chill: bool
) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    lacking = [case for case in references if case not in predictions]
    common = {case: (path, predictions[case]) for case, path in references.items() if case in predictions}
    if lacking and not (chill and common):
        raise UserError(
            f"{folders[1]} lacks {len(lacking)} of {len(references)} cases of {folders[0]}: {name_some(lacking, 10)}; "
            "predict them, or pass --chill to leave them out"
        )
    notes = [f"{len(lacking)} references have no prediction and were left out"] if lacking else []
    more = len(predictions) - len(common)
    return common, notes + ([f"{more} predictions have no reference and were left out"] if more else [])


def _case(case: str, first: Path, second: Path, names: Sequence[str] | None) -> LandmarkCase:
    reference, prediction = landmark_files.read(first).in_image, landmark_files.read(second)
    if names is not None and list(reference.names) != list(names):
        raise UserError(f"{first} has other landmarks than the first reference; expected {name_some(names, 5)}")
    if list(prediction.names) != list(reference.names):
        differing = sorted(set(reference.names) ^ set(prediction.names)) or ["another order"]
        raise UserError(
            f"the landmarks of {second} are not those of {first} ({name_some(differing)}); expected the same names in "
            "the same order, with null for missing ones"
        )
    said = reference.geometry.difference(prediction.geometry)
    if said:
        raise UserError(f"{second} and {first} are not about the same image ({said}); predict from the right images")
    return LandmarkCase(case, reference, prediction, first, second)


# --- CL-Detection 2023 ---


def read_cl_detection(reference: Path, prediction: Path) -> tuple[list[LandmarkCase], list[str]]:
    """The images of train-gt.json and of orthodontic-landmarks.json.

    Raises:
        UserError: names everything that does not fit, at once.
    """
    references, problems = read_points(reference)
    predictions, others = read_points(prediction, scaled=False)
    if problems or others:
        raise UserError(f"the points cannot be scored: {name_some(map(str, [*problems, *others]), 10)}")
    lacking = [str(number) for number in references if number not in predictions]
    if lacking:
        raise UserError(f"{prediction} lacks {len(lacking)} of {len(references)} images: {name_some(lacking, 10)}")
    cases = [
        LandmarkCase(
            f"image_{number:03d}",
            _as_landmarks(truth, truth.scale),
            _as_landmarks(predictions[number], truth.scale),
            reference,
            prediction,
        )
        for number, truth in sorted(references.items())
    ]
    more = len(predictions) - len(cases)
    return cases, [f"{more} images of the prediction have no reference and were left out"] if more else []


def _as_landmarks(cephalogram: Cephalogram, scale: float) -> Landmarks:
    points = [(math.nan, math.nan) if point is None else point[::-1] for point in cephalogram.points]
    return Landmarks(NAMES, np.array(points, float), Geometry.of((1, 1), (scale, scale)))
