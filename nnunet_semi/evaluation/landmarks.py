"""`nnunet_semi evaluate --landmarks`: radial errors in mm, how many are below a limit, and what is missing."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_semi import __version__
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.evaluation.landmark_cases import LandmarkCase, read_cases, read_cl_detection
from nnunet_semi.evaluation.result import SUMMARY, as_columns, output_files, without_nan, write_files
from nnunet_semi.evaluation.statistics import Statistic, summarise, summarise_mean_of_classes, summarise_pooled

LIMITS = (2.0, 2.5, 3.0, 4.0)  # mm, those of the cephalometric challenges since 2014
CL_DETECTION = "cl-detection2023"
MICRO, MACRO = "micro", "macro"


@dataclass(frozen=True)
class LandmarkEvaluation:
    """How far predictions are from references, in every case the same landmarks.

    Attributes:
        cases: in the order of their names.
        challenge: whose files these are; None for folders of JSON files.
        notes: sentences about what is probably not meant so.
    """

    cases: Sequence[LandmarkCase]
    challenge: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def names(self) -> tuple[str, ...]:
        """The landmarks in the order of their labels 1, 2, …"""
        return self.cases[0].reference.names

    @cached_property
    def tables(self) -> dict[str, NDArray[np.float64]]:
        """Metric → cases × landmarks, NaN where it is not defined.

        MRE holds radial errors and SDR whether they are below a limit, both where a landmark is in both files;
        `missed` is defined where the reference has it, `invented` where the reference has it not.
        """
        errors = np.array([case.errors for case in self.cases])
        here, found = (np.array([case.present[side] for case in self.cases]) for side in (0, 1))
        unknown = np.isnan(errors)
        below = {f"SDR {limit:g} mm": np.where(unknown, np.nan, errors < limit) for limit in LIMITS}
        missed, invented = np.where(here, ~found, np.nan), np.where(here, np.nan, found)
        return {"MRE": errors, **below, "missed": missed, "invented": invented}

    @cached_property
    def statistics(self) -> dict[str, dict[str, Statistic]]:
        """Metric → label, `MICRO` (all points together) and `MACRO` (mean of the landmarks' means) → its statistic."""
        return {
            metric: {str(label): statistic for label, statistic in enumerate(summarise(table), 1)}
            | {MICRO: summarise_pooled(table), MACRO: summarise_mean_of_classes(table)}
            for metric, table in self.tables.items()
        }

    @property
    def published(self) -> dict[str, float]:
        """What a challenge publishes: MRE and SDR of all points."""
        return {metric: of[MICRO].mean for metric, of in self.statistics.items() if metric[:3] in ("MRE", "SDR")}

    def as_tree(self) -> dict[str, Any]:
        """In the form of nnU-Net's summary.json, with keys of this project's own behind those that nnU-Net knows."""
        labels = [str(number) for number in range(1, len(self.names) + 1)]
        mean = {label: {metric: of[label].mean for metric, of in self.statistics.items()} for label in labels}
        return {
            "foreground_mean": {metric: of[MACRO].mean for metric, of in self.statistics.items()},
            "mean": mean,
            "metric_per_case": [
                {
                    "case": case.case,
                    "metrics": {
                        label: {metric: float(table[row, column]) for metric, table in self.tables.items()}
                        for column, label in enumerate(labels)
                    },
                    "prediction_file": str(case.prediction_file),
                    "reference_file": str(case.reference_file),
                }
                for row, case in enumerate(self.cases)
            ],
            "nnunet_semi": {
                "version": __version__,
                "settings": {"landmarks": True, "limits": list(LIMITS), "challenge": self.challenge},
                "classes": dict(zip(labels, self.names, strict=True)),
                "statistics": {
                    metric: {label: asdict(statistic) for label, statistic in of.items()}
                    for metric, of in self.statistics.items()
                },
                "challenge": self.published if self.challenge else {},
                "notes": list(self.notes),
            },
        }

    def as_csv(self) -> str:
        """A line for each landmark of each case; coordinates in voxels, in the order x, y(, z)."""
        axes = "xyz"[: self.cases[0].reference.geometry.dim]
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = [f"{who}_{axis}" for who in ("reference", "prediction") for axis in axes]
        writer.writerow(["case", "label", "name", "found", "error_mm", *columns])
        for case in self.cases:
            for index, (name, here, found) in enumerate(zip(self.names, *case.present, strict=True)):
                state = {(True, True): "both", (True, False): "missed", (False, True): "invented"}.get((here, found))
                values = [case.errors[index], *case.reference.voxel[index, ::-1], *case.prediction.voxel[index, ::-1]]
                cells = ("" if math.isnan(value) else repr(round(float(value), 6)) for value in values)
                writer.writerow([case.case, index + 1, name, state or "neither", *cells])
        return text.getvalue()

    def write(self, output: Path, overwrite: bool = False, further: Mapping[str, Any] | None = None) -> list[Path]:
        """Writes summary.json, with `further` entries among this project's own, and cases.csv.

        Values that are not defined are null in the former. `predict_landmarks` writes landmarks.csv, another table.

        Raises:
            UserError: see `output_files`.
        """
        tree = self.as_tree()
        tree["nnunet_semi"] |= further or {}
        files = output_files(output, SUMMARY, overwrite)
        return write_files(files, without_nan(tree), self.as_csv())

    def as_text(self) -> str:
        """A row for each landmark, and what is worth a note."""
        heading = ("MRE in mm", "mean", "sd", "95 % interval")
        rows = [(*heading, *(f"SDR {limit:g} mm" for limit in LIMITS), "pairs", "missed", "invented")]
        titles = {str(number): f"{number} {name}" for number, name in enumerate(self.names, 1)}
        titles |= {MICRO: "all points (micro)", MACRO: "mean of landmarks (macro)"}
        rows += [(title, *self._row(label)) for label, title in titles.items()]
        return "\n\n".join([as_columns(rows), *(f"note: {note}" for note in self.notes)])

    def _row(self, label: str) -> tuple[str, ...]:
        statistics = {metric: of[label] for metric, of in self.statistics.items()}
        errors = statistics["MRE"]
        interval = "-" if math.isnan(errors.low) else f"{errors.low:.2f} to {errors.high:.2f}"
        shares = [_percent(statistics[f"SDR {limit:g} mm"].mean) for limit in LIMITS]
        columns = slice(None) if label in (MICRO, MACRO) else slice(int(label) - 1, int(label))
        counts = [self.tables[metric][:, columns] for metric in ("MRE", "missed", "invented")]
        pairs = str(int((~np.isnan(counts[0])).sum()))
        rates = [f"{int(np.nansum(table))} of {int((~np.isnan(table)).sum())}" for table in counts[1:]]
        return _mm(errors.mean), _mm(errors.sd), interval, *shares, pairs, *rates


def _mm(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def evaluate_landmarks(
    reference: Path | str,
    prediction: Path | str,
    *,
    challenge: str | None = None,
    output: Path | str | None = None,
    overwrite: bool = False,
    chill: bool = False,
    pictures: Path | str | None = None,
    images: Path | str | None = None,
    progress: bool = True,
) -> LandmarkEvaluation:
    """Measures the predicted landmarks in a folder against the references in another.

    The radial error of a landmark that is in both files is their distance in mm. It counts as detected at a limit if
    the error is below it (Wang et al. 2016). A landmark that is in one file only has no error; it is counted as missed
    or as invented.

    Args:
        reference: folder of JSON files as in landmarksTr, or one of them; for the challenge train-gt.json.
        prediction: folder of files of the same names, or one of them; for the challenge orthodontic-landmarks.json.
        challenge: None or cl-detection2023: √(dx² + dy²) · scale, over all points.
        output: folder for summary.json and cases.csv, or the .json file itself; nothing is written without it.
        overwrite: replace what is there.
        chill: leave out references without prediction.
        pictures: folder in which a picture of every case is drawn.
        images: folder of the images, for the pictures; by default imagesTr beside landmarksTr and so on. For the
            challenge the stack.
        progress: show a bar on a terminal.

    Raises:
        WrongUse: an argument cannot mean anything.
        UserError: files are missing or unreadable, or do not belong together; the message names all of them.
    """
    if challenge not in (None, CL_DETECTION):
        raise WrongUse(f"got the challenge {challenge!r}; expected {CL_DETECTION}")
    if images is not None and pictures is None:
        raise WrongUse("got images but no folder for pictures; they are only needed with --pictures")
    reference, prediction = Path(reference), Path(prediction)
    if output is not None:
        output_files(Path(output), SUMMARY, overwrite)  # refuses before the work
    cases, notes = read_cl_detection(reference, prediction) if challenge else read_cases(reference, prediction, chill)
    if not cases or not cases[0].reference.names:
        raise UserError(f"{reference} holds no landmark; expected at least one")
    evaluation = LandmarkEvaluation(cases, challenge, tuple(notes))
    if pictures is not None:
        from nnunet_semi.evaluation.landmark_pictures import draw_cases

        draw_cases(cases, Path(pictures), Path(images) if images else None, bool(challenge), overwrite, progress)
    if output is not None:
        evaluation.write(Path(output), overwrite)
    return evaluation
