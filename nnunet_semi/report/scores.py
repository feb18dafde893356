"""The scores in a summary.json, of the validation of a training or of `nnunet_semi evaluate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_semi.errors import UserError
from nnunet_semi.raw import load_json
from nnunet_semi.report.results import Result

COUNTS = {"TP", "FP", "FN", "TN", "n_pred", "n_ref"}
DISTANCES = ("HD", "HD95", "ASSD", "MRE")  # less is better, as for `missed` and `invented`
LESS_IS_BETTER = (*DISTANCES, "missed", "invented")
MAIN = ("MRE", "Dice")  # the metric that is drawn and that sorts cases, the first that is there
SETTINGS = ("classes", "tolerance", "challenge", "distances")  # of `nnunet_semi evaluate`, worth telling


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
    entries = entries if isinstance(entries, list) else []
    if entries and all(isinstance(_dict(entry).get("metrics"), dict) for entry in entries):
        return _of_summary(result, tree, entries)
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
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _interval(statistic: Any) -> tuple[float, float]:
    return _number(_dict(statistic).get("low")), _number(_dict(statistic).get("high"))


def _path(value: Any) -> Path | None:
    return Path(value) if isinstance(value, str) and "\0" not in value else None
