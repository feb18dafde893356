"""The cases of `nnunet_semi predict_landmarks`: folders of images in, files of points out; or a challenge's stack."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunet_semi import landmark_files
from nnunet_semi.cephalograms import read_cephalogram, stack_header
from nnunet_semi.devices import usable_device
from nnunet_semi.errors import UserError, WrongUse, cause_of
from nnunet_semi.landmarks.prediction import DETAILS, LandmarkPredictor
from nnunet_semi.orthodontics import NAMES, points_as_json
from nnunet_semi.raw import CHANNEL, channel_names, name_some
from nnunet_semi.storage import atomic_path, write_json
from nnunet_semi.trained_model import find_model

CL_DETECTION = "cl-detection2023"
TABLE, CHALLENGE_FILE = "landmarks.csv", "orthodontic-landmarks.json"


def predict_landmarks(
    source: Path | str,
    output: Path | str,
    dataset: str | int,
    configuration: str,
    folds: Sequence[int | str],
    *,
    trainer: str = "nnUNetTrainerHeatmap",
    plans: str = "nnUNetPlans",
    checkpoint: str = "checkpoint_final.pth",
    device: str | None = None,
    mirroring: bool = True,
    threshold: float | None = None,
    challenge: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> tuple[Path, str]:
    """Writes the landmarks of every image.

    OUT/CASE.json holds them as landmarksTr does, with further numbers per landmark: `presence` (probability that it is
    in the image), `uncertainty_mm` (radius that holds the true one in 90 of 100 cases), `spread_mm` (of folds and
    mirrored images), `peak` and `width_mm` (of the heatmap). OUT/landmarks.csv has all cases in one table.

    Args:
        source: folder of images as in imagesTs; for the challenge the stack, or the folder that holds it.
        output: the folder to write into, made if need be; for the challenge also the .json file.
        dataset: id or name.
        configuration: such as 2d.
        folds: an ensemble, if several.
        trainer: class name of the model.
        plans: plans identifier.
        checkpoint: file name.
        device: cpu, cuda or mps; by default cuda if there is one.
        mirroring: predict mirrored images, too, if dataset.json pairs left and right.
        threshold: probability below which a landmark is written as missing; None for .5 if landmarks are missing in
            validation cases, and for 0 if not, or if there are none. The challenge wants all landmarks.
        challenge: None or cl-detection2023.
        overwrite: replace files that are there.
        resume: leave out cases whose file is there and whole, with the landmarks of the model.
        progress: show a bar on a terminal.

    Returns:
        The folder (for the challenge the file), and why uncertainties are not calibrated, or "".

    Raises:
        WrongUse, EnvironmentNotReady, UserError: a sentence says what is missing or wrong.
    """
    if challenge not in (None, CL_DETECTION):
        raise WrongUse(f"got the challenge {challenge!r}; expected {CL_DETECTION}")
    if challenge and (threshold is not None or resume):
        given = "--continue_prediction" if resume else "--threshold"
        raise WrongUse(f"got {given} together with {challenge}, whose one file holds all landmarks; leave it out")
    source, output = Path(source), Path(output)
    model = find_model(dataset, configuration, trainer, plans, folds, checkpoint)
    if challenge:
        stack, target = _stack(source), _challenge_file(output, overwrite)
        predictor = LandmarkPredictor(model, torch.device(usable_device(device)), mirroring, 0.0)
        return _predict_stack(predictor, stack, target, progress), predictor.uncalibrated_because
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; give -i the folder of the images")
    predictor = LandmarkPredictor(model, torch.device(usable_device(device)), mirroring, threshold)
    cases = input_cases(source, predictor.dataset_json)
    _prepare(output, cases, overwrite, resume)
    for case, files in tqdm(cases.items(), "predict_landmarks", disable=None if progress else True):
        target = output / f"{case}.json"
        if resume and _is_done(target, predictor.names):
            continue
        try:
            found = predictor.predict(files)
        except UserError as error:
            raise UserError(f"{files[0]}: {error}") from error
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(f"{files[0]} needs more GPU memory than is free; pass -device cpu") from error
        except Exception as error:
            raise UserError(f"{files[0]} cannot be predicted ({_last_line(error)}); check the image") from error
        landmark_files.write(target, found)
    _write_table(output, cases)
    return output, predictor.uncalibrated_because


def input_cases(folder: Path, dataset_json: dict[str, Any]) -> dict[str, list[str]]:
    """Case → its files in the order of the channels.

    Raises:
        UserError: there is no image, or a channel is missing.
    """
    ending, channels = dataset_json["file_ending"], len(channel_names(dataset_json))
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for path in sorted(folder.iterdir()):
        match = CHANNEL.fullmatch(path.name.removesuffix(ending)) if path.name.endswith(ending) else None
        if match and not path.name.startswith("."):
            found[match["case"]][int(match["channel"])] = str(path)
    if not found:
        raise UserError(f"{folder} holds no image; expected files such as CASE_0000{ending}, as in imagesTr")
    wrong = [case for case, files in found.items() if sorted(files) != list(range(channels))]
    if wrong:
        raise UserError(
            f"{name_some(wrong)} in {folder} has not {channels} channels; expected CASE_0000{ending} to "
            f"CASE_{channels - 1:04d}{ending}"
        )
    return {case: [files[channel] for channel in sorted(files)] for case, files in found.items()}


def _prepare(output: Path, cases: dict[str, list[str]], overwrite: bool, resume: bool) -> None:
    there = [case for case in cases if (output / f"{case}.json").exists()]
    there += [TABLE] if (output / TABLE).exists() else []
    if there and not (overwrite or resume):
        raise UserError(
            f"{output} already holds {name_some(there)}; choose another -o, pass --overwrite to replace them, or "
            "--continue_prediction to keep them"
        )
    _make(output)


def _is_done(file: Path, names: Sequence[str]) -> bool:
    try:
        return list(landmark_files.read(file).names) == list(names)
    except UserError:  # not there, or damaged
        return False


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made ({cause_of(error)}); choose another -o") from error


def _last_line(error: Exception) -> str:
    """The cause, which SimpleITK tells last."""
    return next(reversed(str(error).strip().splitlines()), type(error).__name__)[:200]


def _write_table(output: Path, cases: dict[str, list[str]]) -> None:
    """A row for each landmark of each case, from the files, so that those of an earlier run are in it."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, case in enumerate(cases):
        landmarks = landmark_files.read(output / f"{case}.json")
        if not number:
            axes = "xyz"[: landmarks.geometry.dim]
            places = [f"{space}_{axis}" for space in ("voxel", "world") for axis in axes]
            writer.writerow(["case", "label", "name", *places, *DETAILS])
        nothing = np.full(len(landmarks.names), math.nan)
        details = [landmarks.details.get(name, nothing) for name in DETAILS]
        for index, name in enumerate(landmarks.names):
            place = [*landmarks.voxel[index, ::-1], *landmarks.world[index]]
            values = [round(float(v), landmark_files.DECIMALS) for v in [*place, *(of[index] for of in details)]]
            writer.writerow([case, index + 1, name, *("" if math.isnan(value) else value for value in values)])
    with atomic_path(output / TABLE) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


# --- CL-Detection 2023 ---


def _stack(source: Path) -> Path:
    """The stack itself, or the only one in a folder, as in /input/images/lateral-dental-x-rays."""
    if source.is_file():
        return source
    found = sorted(source.glob("*.mha"))
    if len(found) != 1:
        raise UserError(f"{source} holds {len(found)} .mha files; expected one stack, or give the file itself")
    return found[0]


def _challenge_file(output: Path, overwrite: bool) -> Path:
    target = output if output.suffix == ".json" else output / CHALLENGE_FILE
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; choose another -o, or pass --overwrite to replace it")
    _make(target.parent)
    return target


def _predict_stack(predictor: LandmarkPredictor, stack: Path, target: Path, progress: bool) -> Path:
    """Image by image. The stack does not say how large a pixel is: it is taken as in the training images."""
    if tuple(predictor.names) != NAMES:
        raise UserError(
            f"the model predicts {name_some(predictor.names)}; expected the {len(NAMES)} landmarks of {CL_DETECTION}, "
            f"1 to {len(NAMES)}, as `nnunet_semi convert {CL_DETECTION}` names them"
        )
    header, spacing = stack_header(stack), predictor.median_spacing
    images = []
    for number in tqdm(range(1, header.size[2] + 1), "predict_landmarks", disable=None if progress else True):
        values = read_cephalogram(header, number)
        properties = {"spacing": [999.0 * spacing, spacing, spacing]}  # as SimpleITKIO has it for a 2D image
        found = predictor.predict_array(values[None, None].astype(np.float32), properties)
        images.append([(float(x), float(y)) for y, x in found.voxel])
    write_json(target, points_as_json(images))
    return target
