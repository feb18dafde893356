"""CL-Detection 2023: 38 landmarks in 400 lateral X-rays of the head, in one stack of 8 GB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import SimpleITK as sitk

from nnunet_semi import landmark_files, mha
from nnunet_semi.cephalograms import read_cephalogram, stack_header
from nnunet_semi.dataset_conversion.landmarks import draw_balls
from nnunet_semi.dataset_conversion.plan import LABELED, TEST, Output, Plan, describe
from nnunet_semi.dataset_conversion.sources import Source
from nnunet_semi.dataset_conversion.splits import shuffled_parts
from nnunet_semi.dataset_conversion.volumes import volume
from nnunet_semi.dataset_conversion.writing import DEFAULT, Conversion, Writing, write_dataset
from nnunet_semi.errors import Problem, Unusable
from nnunet_semi.geometry import Geometry
from nnunet_semi.landmark_files import Landmarks
from nnunet_semi.orthodontics import NAMES, Cephalogram, read_points

LABELS = {"background": 0} | {name: number for number, name in enumerate(NAMES, 1)}
PARTS = (300, 50, 50)  # training, validation and test images of the published baseline
LAYOUT = "one stack (train_stack.mha) and one list of points (train-gt.json)"


def convert(
    source: Path | str, dataset_id: int | None = None, name: str = "CLDetection2023", *, writing: Writing = DEFAULT
) -> Conversion:
    """Writes nnUNet_raw/Dataset<id>_<name>; see `plan` for what becomes what, and `write_dataset` for the rest."""
    return write_dataset(plan(source), dataset_id, name, writing)


def plan(source: Path | str) -> Plan:
    """Every slice of the stack becomes a 2D .mha with its spacing in mm, a label map, and a file of coordinates.

    The shuffle of the published baseline decides which images are for training, validation and testing, 300, 50 and 50
    of 400; other numbers are divided in proportion. The test images keep their labels, in labelsTs and landmarksTs.

    Args:
        source: the folder with train_stack.mha and train-gt.json.
    """
    files = Source(source)
    description = describe("cl-detection2023", ["X-ray"], LABELS, ".mha", landmarks={"names": list(NAMES)})
    result = Plan(files.root, description, problems=files.problems, notes=files.notes)
    stack_path = _only(files, ".mha", "*train*stack*", "*stack*", "*")
    points_path = _only(files, ".json", "*train*gt*", "*gt*", "*")
    if stack_path is None or points_path is None:
        if not files.problems:
            files.unknown_layout(LAYOUT)
        return result.finish()
    try:
        header = stack_header(stack_path)
    except Unusable as refusal:
        files.problems.append(refusal.problem)
        return result.finish()
    cephalograms, problems = read_points(points_path, header.size)
    files.problems += problems
    training, validation, test = shuffled_parts(header.size[2], PARTS)
    for number, cephalogram in sorted(cephalograms.items()):
        role = TEST if number in test else LABELED
        work = Slice(header, number, cephalogram)
        result.add(role, _name(number), [stack_path], work, points_path, landmarks=points_path)
    result.splits = [{"train": sorted(map(_name, training)), "val": sorted(map(_name, validation))}]
    if header.size[2] != sum(PARTS):
        parts = ", ".join(map(str, map(len, (training, validation, test))))
        result.notes.append(f"the stack has {header.size[2]} images, not {sum(PARTS)}: they are split into {parts}")
    return result.finish()


def _name(number: int) -> str:
    """The case of an image that has a number in the stack, from 1."""
    return f"ceph_{number:03d}"


def _only(files: Source, ending: str, *patterns: str) -> Path | None:
    """The one file that matches the first pattern that any file matches."""
    listed = files.files(files.root, (ending,), note_others=False).values()
    for pattern in patterns:
        found = [path for path in listed if path.match(pattern)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            files.problems.append(Problem(files.root, f"several candidates ({names})", LAYOUT))
        if found:
            return found[0] if len(found) == 1 else None
    return None


@dataclass(frozen=True)
class Slice:
    """One image of the stack.

    Attributes:
        header: of the stack.
        number: of the image, from 1.
        cephalogram: its landmarks and its scale.
    """

    header: mha.Header
    number: int
    cephalogram: Cephalogram

    def __call__(self, *_: Path) -> Sequence[Output]:
        points = dict(zip(NAMES, self.cephalogram.points, strict=True))
        known = [point for point in self.cephalogram.points if point is not None]
        values = read_cephalogram(self.header, self.number, known)
        size, spacing = values.shape[::-1], (self.cephalogram.scale,) * 2
        labels = draw_balls(points, size, spacing)
        outputs: list[Output] = []
        for array in (values, labels):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(spacing)
            outputs.append(volume(image))
        return [*outputs, partial(landmark_files.write, landmarks=Landmarks.of(points, Geometry.of(size, spacing)))]
