"""Pictures of single cases: contours of reference and prediction on the image, or their landmarks."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from nnunet_semi import landmark_files
from nnunet_semi.errors import UserError
from nnunet_semi.labelmaps.files import Grid, LabelMap, read_label_map
from nnunet_semi.pictures.images import Picture, find_image, read_picture
from nnunet_semi.pictures.landmarks import GREEN, RED, draw_landmarks
from nnunet_semi.report.scores import Case

MARGIN = 0.3  # of the extent of what is drawn, around it
LEAST = 48  # voxels that are shown along an axis, if the image has them
DASH = 5  # pixels


def draw_case(case: Case, landmarks: bool, size: int) -> tuple[bytes, str]:
    """A JPEG of one case, and why its image is not in it; that is empty where it is.

    Args:
        case: with the files of its reference and its prediction.
        landmarks: whether these are files of points.
        size: pixels of the longer side.

    Raises:
        UserError: a file is not there, or cannot be read.
    """
    if case.reference is None or case.prediction is None:
        raise UserError(f"the files of {case.name} are not known")
    for path in (case.reference, case.prediction):
        if not path.is_file():
            raise UserError(f"{path} does not exist")
    page, missing = (_landmarks if landmarks else _contours)(case, size)
    file = BytesIO()
    page.save(file, format="jpeg", quality=80, subsampling=0, optimize=True)  # thin lines keep their colours
    return file.getvalue(), missing


# --- landmarks ---


def _landmarks(case: Case, size: int) -> tuple[Image.Image, str]:
    assert case.reference and case.prediction
    reference = landmark_files.read(case.reference).in_image  # as it is scored
    prediction = landmark_files.read(case.prediction)
    errors = np.linalg.norm(reference.world - prediction.world, axis=1)
    shape, spacing = reference.geometry.shape, reference.geometry.spacing[::-1]
    if int(np.prod(shape)) > 1 << 30:
        raise UserError(f"{case.reference} states the size {reference.geometry.size}, which is too large to draw")
    values, missing = _image(case.reference, case.name, shape)
    page = draw_landmarks(Picture(values, spacing), reference.voxel, prediction.voxel, errors, size * 3 // 2)
    return page, missing


# --- label maps ---


def _contours(case: Case, size: int) -> tuple[Image.Image, str]:
    assert case.reference and case.prediction
    (reference, grid), (prediction, _) = (read_label_map(path) for path in (case.reference, case.prediction))
    if reference.shape != prediction.shape:
        raise UserError(f"{case.prediction} has the shape {prediction.shape}; expected {reference.shape}")
    image, missing = _image(case.reference, case.name, reference.shape)
    spacing = _spacing(grid)
    if image.ndim == 3:
        index = _slice(reference, prediction)
        image, reference, prediction = image[index], reference[index], prediction[index]
        spacing = spacing[1:]
    box = _box((reference > 0) | (prediction > 0))
    return _draw(image[box], reference[box], prediction[box], spacing, size), missing


def _spacing(grid: Grid) -> tuple[float, ...]:
    return grid.spacing or (1.0,) * len(grid.shape)


def _image(reference: Path, case: str, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], str]:
    """The image of a case, or mid-grey, on which contours still say something, and why it is that."""
    path = find_image(reference, case)
    if path is None:
        missing = f"the image of {case} is not at hand"
    else:
        try:
            values = read_picture(path).values
            if values.size == int(np.prod(shape)):
                return values.reshape(shape), ""
            missing = f"the image {path} has the shape {values.shape}, not {shape} as {reference}"
        except UserError as error:
            missing = str(error)
    return np.full(shape, 110, np.uint8), missing


def _slice(reference: LabelMap, prediction: LabelMap) -> int:
    """The slice with the most voxels that differ, or, where none does, with the most that are labeled."""
    differing = (reference != prediction).sum(axis=(1, 2))
    return int(np.argmax(differing if differing.any() else (reference > 0).sum(axis=(1, 2))))


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Around a mask with a margin; everything where it is empty."""
    box = []
    for axis in range(2):
        found = np.flatnonzero(mask.any(axis=1 - axis))
        length = mask.shape[axis]
        if not len(found):
            return (slice(None), slice(None))
        extent = found[-1] - found[0] + 1
        half = max(extent * (0.5 + MARGIN), LEAST / 2)
        middle = (found[0] + found[-1] + 1) / 2
        box.append(slice(max(0, int(middle - half)), min(length, int(np.ceil(middle + half)))))
    return tuple(box)


def _draw(
    image: NDArray[np.uint8], reference: LabelMap, prediction: LabelMap, spacing: tuple[float, ...], size: int
) -> Image.Image:
    extent = np.array(image.shape) * spacing
    shape = np.maximum(np.round(extent * size / extent.max()), 1).astype(int)
    page = Image.fromarray(image).resize((int(shape[1]), int(shape[0])), Image.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(page)
    factors = shape / np.array(image.shape)
    for labels, colour, dashed in ((reference, RED, False), (prediction, GREEN, True)):
        for label in np.unique(labels[labels > 0]):
            for line in _outlines(labels == label):
                points = (line + 0.5) * factors - 0.5
                _line(draw, points, colour, dashed, max(2, size // 240))
    return page


def _outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    from skimage.measure import find_contours  # half a second to import

    return [line - 1 for line in find_contours(np.pad(mask, 1).astype(np.float32), 0.5)]


def _line(
    draw: ImageDraw.ImageDraw, points: NDArray[np.float64], colour: tuple[int, int, int], dashed: bool, width: int
) -> None:
    """A line through points (y, x), in dashes of the same length whatever the points."""
    flat = [(float(x), float(y)) for y, x in points]
    if not dashed:
        draw.line(flat, fill=colour, width=width)
        return
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    gone = np.concatenate([[0], np.cumsum(steps)])
    for start in np.arange(0, gone[-1], 2 * DASH):
        places = np.unique(np.clip([start, *gone[(gone > start) & (gone < start + DASH)], start + DASH], 0, gone[-1]))
        dash = [(float(np.interp(p, gone, points[:, 1])), float(np.interp(p, gone, points[:, 0]))) for p in places]
        if len(dash) > 1:
            draw.line(dash, fill=colour, width=width)
