"""The scores in a summary.json, of nnU-Net's validation, of `nnunet_semi evaluate`, or of a heatmap trainer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_semi import landmark_files
from nnunet_semi.errors import UserError
from nnunet_semi.raw import RAW, load_json
from nnunet_semi.report.results import Result

COUNTS = {"TP", "FP", "FN", "TN", "n_pred", "n_ref"}
DISTANCES = ("HD", "HD95", "ASSD", "MRE")  # less is better, as for `missed` and `invented`
LESS_IS_BETTER = (*DISTANCES, "missed", "invented")
MAIN = ("MRE", "Dice")  # the metric that is drawn and that sorts cases, the first that is there
SETTINGS = ("classes", "tolerance", "challenge", "distances")  # of `nnunet_semi evaluate`, worth telling
LIMITS = (2.0, 2.5, 3.0, 4.0)  # mm


@dataclass(frozen=True)
class Case:
    """One scored case.

    Attributes:
        name: of the case.
        values: class → metric → value, NaN where it is not defined.
        reference: its file; None where it is not known.
        prediction: its file.
    """

    name: str
    values: Mapping[str, Mapping[str, float]]
    reference: Path | None
    prediction: Path | None


@dataclass(frozen=True)
class Scores:
    """The scores of all cases.

    Attributes:
        cases: in the order of the file.
        classes: class → its name.
        metrics: in the order of the file, without counts of voxels.
        landmarks: whether the classes are landmarks.
        intervals: metric → class → (low, high) of the mean, where the file states them.
        means: metric → the mean over the classes, where the file states it: a challenge may leave classes out of it.
        unit: of the distances, mm or pixels.
        facts: how it was scored, in words.
        notes: sentences that the evaluation left.
    """

    cases: list[Case]
    classes: dict[str, str]
    metrics: list[str]
    landmarks: bool = False
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    means: Mapping[str, float] = field(default_factory=dict)
    unit: str = "mm"
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What the classes are."""
        return "landmark" if self.landmarks else "class"

    @property
    def kinds(self) -> str:
        """The same of several."""
        return "landmarks" if self.landmarks else "classes"

    @property
    def main(self) -> str:
        """The metric that is drawn and that sorts cases."""
        return next((metric for metric in MAIN if metric in self.metrics), self.metrics[0])

    def table(self, metric: str) -> NDArray[np.float64]:
        """Cases × classes."""
        rows = [[case.values.get(label, {}).get(metric, math.nan) for label in self.classes] for case in self.cases]
        return np.array(rows, float).reshape(len(self.cases), len(self.classes))

    def mean_of_classes(self, metric: str) -> float:
        """As the file states it, or else the mean of the classes' means."""
        if metric in self.means:
            return self.means[metric]
        means = [
            float(column[~np.isnan(column)].mean()) for column in self.table(metric).T if not np.isnan(column).all()
        ]
        return sum(means) / len(means) if means else math.nan

    def heading(self, metric: str) -> str:
        """The metric with its unit."""
        return f"{metric} in {self.unit}" if metric in DISTANCES else metric

    def ranking(self) -> list[tuple[Case, float]]:
        """The cases that have a value, the worst first, with the mean over their classes in the main metric."""
        with np.errstate(invalid="ignore"):
            known = ~np.isnan(self.table(self.main))
            means = np.nansum(self.table(self.main), axis=1) / known.sum(axis=1)
        order = np.argsort(means if self.main not in LESS_IS_BETTER else -means, kind="stable")
        return [(self.cases[index], float(means[index])) for index in order if not np.isnan(means[index])]


def read_scores(result: Result) -> Scores:
    """The scores of a result.

    Raises:
        UserError: its summary.json is not of a known form.
    """
    assert result.summary is not None
    tree = load_json(result.summary)
    entries = tree.get("metric_per_case")
    if isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries):
        if all(isinstance(entry.get("metrics"), dict) for entry in entries):
            return _of_summary(result, tree, entries)
        if "per_landmark" in tree:
            return _of_landmarks(result, tree, entries)
    raise UserError(
        f"{result.summary} holds no scores of cases (metric_per_case); expected what nnU-Net's validation or "
        "`nnunet_semi evaluate -o` writes; score the predictions again"
    )


def _of_summary(result: Result, tree: dict[str, Any], entries: list[dict[str, Any]]) -> Scores:
    assert result.summary is not None
    own = _dict(tree.get("nnunet_semi"))
    labels = list(dict.fromkeys(str(label) for entry in entries for label in entry["metrics"]))
    names = _names(result, _dict(own.get("classes")))
    cases = [_case(result, entry) for entry in entries]
    metrics = list(
        dict.fromkeys(m for case in cases for values in case.values.values() for m in values if m not in COUNTS)
    )
    if not labels or not metrics:
        raise UserError(f"{result.summary} holds cases without scores; score the predictions again")
    settings = _dict(own.get("settings"))
    facts = {str(name): str(value) for name, value in settings.items() if name in SETTINGS and value}
    facts |= {f"challenge: {name}": _digits(value) for name, value in _dict(own.get("challenge")).items()}
    intervals = {
        metric: {label: _interval(_dict(of).get(label)) for label in labels}
        for metric, of in _dict(own.get("statistics")).items()
    }
    return Scores(
        cases,
        {label: names.get(label, label) for label in labels},
        metrics,
        bool(settings.get("landmarks")),
        intervals,
        {str(metric): _number(value) for metric, value in _dict(tree.get("foreground_mean")).items()} if own else {},
        str(settings.get("distances") or "mm"),
        facts,
        [str(note) for note in own.get("notes") or []],
    )


def _case(result: Result, entry: dict[str, Any]) -> Case:
    values = {
        str(label): {str(metric): _number(value) for metric, value in _dict(of).items()}
        for label, of in entry["metrics"].items()
    }
    prediction, reference = (_path(entry.get(f"{kind}_file")) for kind in ("prediction", "reference"))
    name = str(entry.get("case") or (prediction.name if prediction else "?"))
    for ending in (".gz", ".nii", ".png", ".mha", ".nrrd", ".tif", ".tiff", ".bmp", ".json"):
        name = name.removesuffix(ending)
    if prediction and not prediction.is_file() and result.summary:
        prediction = result.summary.parent / prediction.name  # the folder was moved
    return Case(name, values, reference, prediction)


def _of_landmarks(result: Result, tree: dict[str, Any], entries: list[dict[str, Any]]) -> Scores:
    """Of a heatmap trainer, which keeps only means: measured again from the files of points, where both are there."""
    assert result.summary is not None
    folder, dataset = result.summary.parent, _dataset(result)
    names = [str(name) for name in _dict(tree["per_landmark"])]
    cases = []
    for entry in entries:
        name = str(entry.get("case"))
        prediction, reference = folder / f"{Path(name).name}.json", None
        values: dict[str, dict[str, float]] = {}
        if dataset is not None and (dataset / "landmarksTr" / prediction.name).is_file() and prediction.is_file():
            reference = dataset / "landmarksTr" / prediction.name
            values = _landmark_values(landmark_files.read(reference), landmark_files.read(prediction))
        else:
            values = {"0": {"MRE": _number(entry.get("MRE"))}}
        cases.append(Case(name, values, reference, prediction))
    if any("0" in case.values for case in cases):
        note = "The reference landmarks are not at hand: only the mean of each case is known."
        cases = [Case(c.name, {"0": {"MRE": _case_mean(c)}}, c.reference, c.prediction) for c in cases]
        return Scores(cases, {"0": "all landmarks"}, ["MRE"], True, notes=[note])
    metrics = ["MRE", *(f"SDR {limit:g} mm" for limit in LIMITS), "missed", "invented"]
    return Scores(cases, {str(label): name for label, name in enumerate(names, 1)}, metrics, True)


def _case_mean(case: Case) -> float:
    values = [of["MRE"] for of in case.values.values() if not math.isnan(of["MRE"])]
    return sum(values) / len(values) if values else math.nan


def _landmark_values(
    reference: landmark_files.Landmarks, prediction: landmark_files.Landmarks
) -> dict[str, dict[str, float]]:
    values = {}
    errors = np.linalg.norm(reference.world - prediction.world, axis=1)
    for label, error in enumerate(errors, 1):
        here, found = (not np.isnan(side.voxel[label - 1]).any() for side in (reference, prediction))
        of = {"MRE": float(error)}
        of |= {f"SDR {limit:g} mm": math.nan if math.isnan(error) else float(error < limit) for limit in LIMITS}
        of |= {"missed": float(not found) if here else math.nan, "invented": math.nan if here else float(found)}
        values[str(label)] = of
    return values


def _dataset(result: Result) -> Path | None:
    """The raw dataset of a fold, where nnUNet_raw is set and has it."""
    folder = Path(os.environ.get(RAW, ""), result.model.parent.name)
    return folder if os.environ.get(RAW) and folder.is_dir() else None


def _names(result: Result, stated: dict[str, Any]) -> dict[str, str]:
    """Class as the summary has it → name: stated by the summary, or from the dataset.json of the model."""
    if stated:
        return {str(label): f"{label} {name}".strip() for label, name in stated.items()}
    path = result.model / "dataset.json"
    if not result.trained or not path.is_file():
        return {}
    found = {}
    for name, value in _dict(load_json(path).get("labels")).items():
        key = str(tuple(value)) if isinstance(value, list) and len(value) > 1 else str(value)
        found[key] = f"{key} {name}"
    return found


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _digits(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _interval(statistic: Any) -> tuple[float, float]:
    return _number(_dict(statistic).get("low")), _number(_dict(statistic).get("high"))


def _path(value: Any) -> Path | None:
    return Path(value) if isinstance(value, str) and "\0" not in value else None
