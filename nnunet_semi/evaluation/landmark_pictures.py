"""A picture of the landmarks of every case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunet_semi.cephalograms import read_cephalogram, stack_header
from nnunet_semi.errors import UserError, cause_of
from nnunet_semi.evaluation.landmark_cases import LandmarkCase
from nnunet_semi.pictures.images import Picture, find_image, read_picture
from nnunet_semi.pictures.landmarks import draw_landmarks
from nnunet_semi.raw import name_some
from nnunet_semi.storage import atomic_path


def draw_cases(
    cases: Sequence[LandmarkCase], folder: Path, images: Path | None, stack: bool, overwrite: bool, progress: bool
) -> list[Path]:
    """Writes CASE.png for each case.

    Args:
        cases: what to draw.
        folder: is made.
        images: folder of the images, or the stack; None looks for imagesTr beside landmarksTr and so on.
        stack: whether the images are slices of a stack, by the number in the name of the case.
        overwrite: replace pictures that are there.
        progress: show a bar on a terminal.

    Raises:
        UserError: pictures exist, or an image is not found or not the one that the landmarks are about.
    """
    files = [folder / f"{case.case}.png" for case in cases]
    there = [file.name for file in files if file.exists()]
    if there and not overwrite:
        raise UserError(f"{folder} already holds {name_some(there)}; choose another --pictures, or pass --overwrite")
    if stack and images is None:
        raise UserError("the pictures of cl-detection2023 need the stack of images; give it with --images")
    header = stack_header(images) if stack and images else None
    sources = {} if header else _sources(cases, images)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made ({cause_of(error)}); choose another") from error
    for case, file in zip(tqdm(cases, "pictures", disable=None if progress else True), files, strict=True):
        if header:
            known = [tuple(point[::-1]) for point in case.reference.voxel if not np.isnan(point).any()]
            values = read_cephalogram(header, int(case.case.rpartition("_")[2]), known)
            picture = Picture(values, case.reference.geometry.spacing)
        else:
            picture = _picture(sources[case.case], case)
        page = draw_landmarks(picture, case.reference.voxel, case.prediction.voxel, case.errors)
        with atomic_path(file) as temporary:
            page.save(temporary, format="png")
    return files


def _sources(cases: Sequence[LandmarkCase], images: Path | None) -> dict[str, Path]:
    found = {case.case: find_image(case.reference_file, case.case, images) for case in cases}
    lacking = [case for case, path in found.items() if path is None]
    if lacking:
        raise UserError(
            f"there is no image for {name_some(lacking)} {f'in {images}' if images else 'beside the references'}; say "
            "with --images in which folder the images are"
        )
    return {case: path for case, path in found.items() if path is not None}


def _picture(path: Path, case: LandmarkCase) -> Picture:
    picture = read_picture(path)
    shape = case.reference.geometry.shape
    if picture.values.shape[-len(shape) :] != shape or picture.values.ndim - len(shape) not in (0, 1):
        raise UserError(
            f"{path} has the shape {picture.values.shape}; expected {shape}, as {case.reference_file} says; give the "
            "right folder with --images"
        )
    return Picture(picture.values.reshape(shape), case.reference.geometry.spacing[::-1])
