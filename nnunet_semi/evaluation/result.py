"""What an evaluation found: as nnU-Net's summary.json, as CSV, and as a table to read."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_semi import __version__
from nnunet_semi.errors import UserError, cause_of
from nnunet_semi.evaluation.cases import CaseScores
from nnunet_semi.evaluation.overlap import Label
from nnunet_semi.evaluation.statistics import Statistic, summarise, summarise_mean_of_classes
from nnunet_semi.storage import atomic_path, write_json

RATIOS = ("Dice", "IoU", "NSD")  # the other metrics are distances
SUMMARY = ("summary.json", "cases.csv")  # what is written of an evaluation


@dataclass(frozen=True)
class Evaluation:
    """The scores of one folder of predictions.

    Attributes:
        cases: in the order of their names, each with the same classes.
        names: label or region → name, "" where it has none.
        means: the metrics to show → the classes over which their mean is taken.
        settings: how it was measured, for summary.json.
        challenge: what a challenge publishes; empty without one.
        notes: sentences about what is probably not meant so.
    """

    cases: Sequence[CaseScores]
    names: Mapping[Label, str]
    means: Mapping[str, Sequence[Label]]
    settings: Mapping[str, Any]
    challenge: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def values(self, metric: str, labels: Sequence[Label] | None = None) -> NDArray[np.float64]:
        """The values of a metric, cases × classes; NaN where they are not defined."""
        labels = self.means[metric] if labels is None else labels
        return np.array([[case.metrics[label][metric] for label in labels] for case in self.cases], float)

    @cached_property
    def statistics(self) -> dict[str, dict[Label, Statistic]]:
        """Metric → class → what its values have in common; for the metrics of `means`."""
        return {m: dict(zip(labels, summarise(self.values(m)), strict=True)) for m, labels in self.means.items()}

    @cached_property
    def overall(self) -> dict[str, Statistic]:
        """Metric → the mean over its classes."""
        return {metric: summarise_mean_of_classes(self.values(metric)) for metric in self.means}

    @property
    def unit(self) -> str:
        """Of the distances: mm, or pixels."""
        return ", ".join(sorted({case.unit for case in self.cases}))

    def undefined(self, label: Label) -> tuple[int, int]:
        """In how many cases a class is empty in both files, and in how many in one of them."""
        counts = [(case.metrics[label]["n_ref"], case.metrics[label]["n_pred"]) for case in self.cases]
        return sum(not a and not b for a, b in counts), sum((not a) != (not b) for a, b in counts)

    # --- files ---

    def as_tree(self) -> dict[str, Any]:
        """In the form of nnU-Net's summary.json, with keys of this project's own behind those that nnU-Net knows."""
        shared = list(next(iter(self.cases[0].metrics.values()), {}))
        mean = {str(label): {m: _mean(self.values(m, [label])) for m in shared} for label in self.names}
        of_classes = {m: _mean(np.array([values[m] for values in mean.values()])) for m in shared}
        return {
            "foreground_mean": of_classes | {metric: statistic.mean for metric, statistic in self.overall.items()},
            "mean": mean,
            "metric_per_case": [
                {
                    "metrics": {str(label): dict(values) for label, values in case.metrics.items()},
                    "prediction_file": str(case.prediction),
                    "reference_file": str(case.reference),
                }
                for case in self.cases
            ],
            "nnunet_semi": {
                "version": __version__,
                "settings": {**self.settings, "distances": self.unit},
                "classes": {str(label): name for label, name in self.names.items()},
                "statistics": {
                    metric: {str(label): asdict(statistic) for label, statistic in of_label.items()}
                    | {"mean of classes": asdict(self.overall[metric])}
                    for metric, of_label in self.statistics.items()
                },
                "both_empty": {str(label): self.undefined(label)[0] for label in self.names},
                "one_empty": {str(label): self.undefined(label)[1] for label in self.names},
                "challenge": dict(self.challenge),
                "notes": list(self.notes),
            },
        }

    def as_csv(self) -> str:
        """A line for each class of each case."""
        columns = list(next(iter(self.cases[0].metrics.values()), {}))
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "class", "name", *columns])
        for case in self.cases:
            for label, values in case.metrics.items():
                numbers = ("" if math.isnan(values[column]) else repr(values[column]) for column in columns)
                writer.writerow([case.case, label, self.names[label], *numbers])
        return text.getvalue()

    def write(self, output: Path, overwrite: bool = False) -> list[Path]:
        """Writes summary.json and cases.csv; see `output_files`."""
        return write_files(output_files(output, SUMMARY, overwrite), self.as_tree(), self.as_csv())

    # --- text ---

    def as_text(self) -> str:
        """A block of lines for each metric, what the challenge publishes, and what is worth a note."""
        blocks = [self._block(metric) for metric in self.means]
        if self.challenge:
            width = max(map(len, self.challenge))
            lines = [f"{name:<{width}}  {value:10.4f}" for name, value in self.challenge.items()]
            blocks.append("\n".join([str(self.settings.get("challenge")), *lines]))
        blocks += [f"note: {note}" for note in self.notes]
        return "\n\n".join(blocks)

    def _block(self, metric: str) -> str:
        rows = [
            (title(label, self.names), *_cells(metric, statistic), *map(str, self.undefined(label)))
            for label, statistic in self.statistics[metric].items()
        ]
        if len(rows) != 1:
            rows.append(("mean of classes", *_cells(metric, self.overall[metric]), "", ""))
        heading = (self._heading(metric), "mean", "sd", "95 % interval", "cases", "both empty", "one empty")
        return as_columns([heading, *rows])

    def _heading(self, metric: str) -> str:
        tolerance = self.settings.get("tolerance")
        if metric == "NSD":
            return f"NSD at {tolerance:g} {self.unit}" if tolerance else metric
        return metric if metric in RATIOS else f"{metric} in {self.unit}"


def title(label: Label, names: Mapping[Label, str]) -> str:
    """A label or region with its name, such as "2 spleen" or "1,2 both lips"."""
    number = ",".join(map(str, label)) if isinstance(label, tuple) else str(label)
    return f"{number} {names.get(label, '')}".strip()


def number(metric: str, value: float, sign: str = "") -> str:
    """A value with four digits behind the point, a distance with two; "-" where it is not defined."""
    return "-" if math.isnan(value) else f"{value:{sign}.{4 if metric in RATIOS else 2}f}"


def _cells(metric: str, statistic: Statistic) -> tuple[str, ...]:
    low, high = number(metric, statistic.low), number(metric, statistic.high)
    interval = "-" if low == "-" else f"{low} to {high}"
    return number(metric, statistic.mean), number(metric, statistic.sd), interval, str(statistic.cases)


def as_columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def output_files(output: Path, names: tuple[str, str], overwrite: bool) -> tuple[Path, Path]:
    """The JSON file and the CSV file to write: of these names in a folder, which is made, or FILE.json and FILE.csv.

    Raises:
        UserError: one of them exists and may not be replaced, or the folder cannot be made or written into.
    """
    named = output.suffix == ".json"
    files = (output, output.with_suffix(".csv")) if named else (output / names[0], output / names[1])
    there = [str(file) for file in files if file.exists()]
    if there and not overwrite:
        raise UserError(f"{' and '.join(there)} exists; choose another -o, or pass --overwrite to replace it")
    with _telling(files[0].parent) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    return files


def write_files(files: tuple[Path, Path], tree: Any, table: str) -> list[Path]:
    """Writes a tree as JSON and a table as CSV, each atomically; gives their paths.

    Raises:
        UserError: one of them cannot be written.
    """
    with _telling(files[0].parent):
        write_json(files[0], tree)
        with atomic_path(files[1]) as temporary:
            temporary.write_text(table, encoding="utf-8")
    return list(files)


@contextmanager
def _telling(folder: Path) -> Iterator[Path]:
    """Tells in a sentence why nothing can be written into a folder."""
    try:
        yield folder
    except OSError as error:
        raise UserError(
            f"{folder}: {cause_of(error)}; make sure that there is free space and that you may write into it, or "
            "choose another -o"
        ) from error


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def without_nan(tree: Any) -> Any:
    """A tree for JSON with None in the place of NaN, which readers other than Python's refuse."""
    if isinstance(tree, Mapping):
        return {key: without_nan(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and math.isnan(tree) else tree
