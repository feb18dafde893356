"""Scores of one case, read from its two files; what a worker process does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnunet_semi.errors import UserError
from nnunet_semi.evaluation import METRICS
from nnunet_semi.evaluation.challenges import CHALLENGES
from nnunet_semi.evaluation.classes import Classes
from nnunet_semi.evaluation.crop import CroppedPair, without_thin_axis
from nnunet_semi.evaluation.overlap import JointCounts, Label, Overlap, Scores, joint_counts
from nnunet_semi.evaluation.surface import SurfaceDistances
from nnunet_semi.labelmaps.files import LabelMap, read_label_map

SURFACE_METRICS: dict[str, Callable[[SurfaceDistances, float], float]] = {
    "nsd": lambda distances, tolerance: distances.nsd(tolerance),
    "hd": lambda distances, _: distances.hausdorff(),
    "hd95": lambda distances, _: distances.hausdorff(95),
    "assd": lambda distances, _: distances.average(),
}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        classes: which labels and regions.
        metrics: names, keys of `METRICS`.
        tolerance: of the NSD, in mm (pixels where the files know no mm).
        challenge: whose rules to follow instead of all this; None for none.
    """

    classes: Classes
    metrics: tuple[str, ...] = ("dice",)
    tolerance: float = 2.0
    challenge: str | None = None


@dataclass(frozen=True)
class Task:
    """One case to score."""

    case: str
    reference: Path
    prediction: Path
    settings: Settings


@dataclass(frozen=True)
class CaseScores:
    """What one case got.

    Attributes:
        case: its name.
        reference: its file.
        prediction: its file.
        metrics: label or region → metric as summary.json calls it → value; NaN where it is not defined.
        voxels: how many counted.
        unknown: labels that are in a file but in no class.
        unit: of the distances, mm or pixels.
        problem: why the case could not be scored, "" if it was.
    """

    case: str
    reference: Path
    prediction: Path
    metrics: Scores
    voxels: int = 0
    unknown: frozenset[int] = frozenset()
    unit: str = "mm"
    problem: str = ""

    def filled(self, labels: Iterable[Label], metrics: Iterable[str]) -> CaseScores:
        """With an entry for each of the labels: those that this case does not have are empty in both its files."""
        overlap = Overlap(0, 0, 0, self.voxels).as_nnunet()
        empty = overlap | {metric: math.nan for metric in metrics if metric not in overlap}
        return replace(self, metrics={label: self.metrics.get(label, empty) for label in labels})


def score_case(task: Task) -> CaseScores:
    """Reads the two files of a case and scores them; what is wrong with a file comes back as `problem`."""
    try:
        return _score(task)
    except UserError as error:
        return CaseScores(task.case, task.reference, task.prediction, {}, problem=str(error))


def _score(task: Task) -> CaseScores:
    settings = task.settings
    challenge = CHALLENGES[settings.challenge] if settings.challenge else None
    binary = challenge is not None and challenge.binary
    (reference, grid), (prediction, _) = (read_label_map(path, binary) for path in (task.reference, task.prediction))
    spacing = grid.spacing or (1.0,) * reference.ndim
    counts = joint_counts(reference, prediction, settings.classes.ignore)
    if challenge and challenge.volumes and reference.ndim != 3:
        raise UserError(f"{task.reference} has {reference.ndim} dimensions; expected a volume for {settings.challenge}")
    if challenge:
        metrics = challenge.score(reference, prediction, spacing, counts)
    else:
        metrics = measure(reference, prediction, spacing, settings, counts)
    known = settings.classes.known
    unknown = frozenset(counts.labels) - known if known else frozenset()
    if challenge and unknown:
        raise UserError(
            f"{task.reference} or {task.prediction} holds the labels {sorted(unknown)}; expected those of "
            f"{settings.challenge}, {sorted(known)}"
        )
    unit = "mm" if grid.spacing and not (challenge and challenge.in_pixels) else "pixels"
    voxels = int(counts.counts.sum())
    return CaseScores(task.case, task.reference, task.prediction, metrics, voxels, unknown, unit)


def measure(
    reference: LabelMap, prediction: LabelMap, spacing: Sequence[float], settings: Settings, counts: JointCounts
) -> Scores:
    """Scores all classes of one case.

    Dice and IoU are always there, with the counts that nnU-Net's summary.json holds. A label map of a single slice is
    measured as what it is, in 2D.

    Args:
        reference: 2D or 3D.
        prediction: of the same shape.
        spacing: size of a voxel along each axis.
        settings: what to measure; a challenge in it is not looked at.
        counts: of the two label maps.
    """
    ignore = settings.classes.ignore
    labels = settings.classes.names or [label for label in counts.labels if label not in (0, ignore)]
    scores: Scores = {label: counts.overlap(label).as_nnunet() for label in labels}
    if not set(settings.metrics) & SURFACE_METRICS.keys():
        return scores
    if ignore is not None:
        reference, prediction = (np.where(reference == ignore, 0, array) for array in (reference, prediction))
    pair = CroppedPair(*without_thin_axis(reference, prediction, spacing))
    for label, values in scores.items():
        distances = pair.distances(label)
        chosen = (name for name in SURFACE_METRICS if name in settings.metrics)
        values.update({METRICS[name]: SURFACE_METRICS[name](distances, settings.tolerance) for name in chosen})
    return scores
