"""Puts predictions back onto the grid that the images had before their conversion."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import SimpleITK as sitk

from nnunet_semi import raw
from nnunet_semi.dataset_conversion import volumes
from nnunet_semi.dataset_conversion.performing import perform
from nnunet_semi.dataset_conversion.plan import LABELED, TEST, UNLABELED, Output, SourceProblems, Step
from nnunet_semi.dataset_conversion.raster import label_values, smallest_type
from nnunet_semi.dataset_conversion.reorientation import Reorientation
from nnunet_semi.dataset_conversion.sources import Source
from nnunet_semi.errors import Problem, Unusable, UserError, WrongUse
from nnunet_semi.log import Log, to_stderr


@dataclass(frozen=True)
class Restoration:
    """What `restore` did.

    Attributes:
        folder: where the predictions are now.
        files: their names.
    """

    folder: Path
    files: list[str]

    def __str__(self) -> str:
        return f"{self.folder}: {len(self.files)} predictions on the grid of the original images"


def restore(
    predictions: Path | str,
    dataset: str | int,
    output: Path | str,
    *,
    overwrite: bool = False,
    num_processes: int | None = None,
    progress: bool = True,
    log: Log = to_stderr,
) -> Restoration:
    """Undoes reorientation and crop for the predictions of a dataset, and gives them their original names.

    The restored files have the header of the original ones bit for bit, but for the type of their values. What was cut
    away is background. All files appear at once, or none.

    Args:
        predictions: a folder with label maps, as nnUNetv2_predict writes them; probabilities are passed over.
        dataset: name or id of the dataset that `nnunet_semi convert` made.
        output: a folder, made where it is missing.
        overwrite: whether to replace files in `output`.
        num_processes: None stands for one per core, at most 8.
        progress: whether to show it.
        log: takes sentences about what is going on.

    Raises:
        UserError: a prediction does not belong to the dataset, or nothing is to be undone.
    """
    name = raw.dataset_name(dataset)
    folder = raw.dataset_folder(raw.RAW, name)
    ending = str(raw.load_json(folder / "dataset.json").get("file_ending"))
    files, output = Source(predictions), Path(output).expanduser()
    if output.resolve() == files.root.resolve():
        raise WrongUse(f"got {output} for predictions and output; expected two folders")
    found = files.files(files.root, (ending,))
    if not found:
        files.empty(files.root, f"predictions for {name}, ending in {ending}")
    problems = files.problems
    steps = _steps(found, folder, problems)
    targets = {step.files[0][1].partition("/")[2]: step.sources[0] for step in steps}
    if len(targets) < len(steps):
        problems.append(Problem(files.root, "two predictions for one image", "one for each"))
    present = [target for target in targets if os.path.lexists(output / target)]
    if present and not overwrite:
        raise WrongUse(f"{raw.name_some(present)} exist in {output} already; replace them with --overwrite")
    if problems:
        raise SourceProblems(files.root, problems)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".restoring_", dir=output) as temporary:
            report = perform(steps, Path(temporary), False, num_processes, log, progress)
            if report.problems:
                raise SourceProblems(files.root, report.problems)
            for target in targets:
                os.replace(Path(temporary) / "restored" / target, output / target)
    except OSError as error:
        raise UserError(
            f"{error.filename or output}: {error.strerror or error}; make sure that there is free space and that you "
            f"may write into {output}"
        ) from error
    return Restoration(output, sorted(targets))


def _steps(found: dict[str, Path], dataset: Path, problems: list[Problem]) -> list[Step]:
    """A step for each prediction whose geometry the dataset knows."""
    folders = [dataset / f"geometry{role}" for role in (TEST, UNLABELED, LABELED)]
    if not any(folder.is_dir() for folder in folders):
        raise UserError(
            f"{dataset} holds no geometry, because no image was turned or cropped when it was made; its predictions "
            "are on the grid of the original images already"
        )
    steps = []
    for case, path in sorted(found.items()):
        known = [folder / f"{case}.json" for folder in folders if (folder / f"{case}.json").is_file()]
        if not known:
            problems.append(Problem(path, f"a case that {dataset.name} does not have", "a prediction for one of its"))
            continue
        try:
            geometry, *others = [Reorientation.from_json(sidecar, raw.load_json(sidecar)) for sidecar in known]
        except Unusable as refusal:
            problems.append(refusal.problem)
            continue
        if any(other != geometry for other in others):
            where = " and ".join(sidecar.parent.name for sidecar in known)
            expected = "one image of this name; convert the source again, which gives each a name of its own"
            problems.append(Problem(path, f"the name of several images, on other grids (in {where})", expected))
        else:
            steps.append(Step(((path, f"restored/{geometry.file}"),), Back(geometry)))
    return steps


@dataclass(frozen=True)
class Back:
    """The way of one prediction."""

    geometry: Reorientation

    def __call__(self, path: Path) -> Sequence[Output]:
        image = volumes.read_volume(path, dimensions=(3,))
        if image.GetSize() != self.geometry.box:
            found, expected = f"the size {image.GetSize()}", f"{self.geometry.box} as the image in the dataset"
            raise Unusable(Problem(path, found, expected))
        values = sitk.GetArrayViewFromImage(image)
        label_values(path, values)
        restored = self.geometry.restored(smallest_type(values).transpose())
        return [lambda target: nibabel.save(restored, target)]
