"""`nnunet_semi evaluate --compare`: several predictions of the same cases, and whether they differ."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from nnunet_semi import __version__
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.evaluation.overlap import Label
from nnunet_semi.evaluation.result import Evaluation, as_columns, number, output_files, title, write_files
from nnunet_semi.evaluation.run import evaluate, publish
from nnunet_semi.evaluation.statistics import Difference, compare

COMPARISON = ("comparison.json", "comparison.csv")
MEAN = "mean of classes"


@dataclass(frozen=True)
class Comparison:
    """Several predictions against the first of them.

    Attributes:
        evaluations: folder of the prediction → its scores; the cases are the same.
        differences: metric → folder, without the first → class or `MEAN` → the paired differences to the first.
    """

    evaluations: Mapping[str, Evaluation]
    differences: Mapping[str, Mapping[str, Mapping[Label | str, Difference]]]

    @property
    def baseline(self) -> str:
        """The prediction that the others are compared with."""
        return next(iter(self.evaluations))

    @property
    def names(self) -> Mapping[Label, str]:
        """The names of the classes."""
        return self.evaluations[self.baseline].names

    def rows(self) -> list[dict[str, Any]]:
        """A row for each metric, class and prediction but the first."""
        return [
            {"metric": metric, "class": _title(label, self.names), "prediction": folder, "baseline": self.baseline}
            | asdict(difference)
            for metric, of_folder in self.differences.items()
            for folder, of_label in of_folder.items()
            for label, difference in of_label.items()
        ]

    def as_tree(self) -> dict[str, Any]:
        """Everything for JSON: the differences, and each prediction's summary without its cases."""
        summaries = {folder: evaluation.as_tree() for folder, evaluation in self.evaluations.items()}
        for summary in summaries.values():
            del summary["metric_per_case"]
        return {"version": __version__, "differences": self.rows(), "predictions": summaries}

    def as_csv(self) -> str:
        """The rows as CSV."""
        text = StringIO()
        rows = self.rows()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def write(self, output: Path, overwrite: bool = False) -> list[Path]:
        """Writes comparison.json and comparison.csv; see `output_files`."""
        files = output_files(output, COMPARISON, overwrite)
        return write_files(files, self.as_tree(), self.as_csv())

    def as_text(self) -> str:
        """A block of lines for each metric, with what challenges publish and what is worth a note."""
        blocks = [self._block(metric) for metric in self.differences]
        published = {folder: evaluation.challenge for folder, evaluation in self.evaluations.items()}
        if published[self.baseline]:
            names = published[self.baseline]
            rows = [[name, *(f"{values[name]:.4f}" for values in published.values())] for name in names]
            blocks.append(as_columns([["", *self._short_names().values()], *rows]))
        blocks.append(
            f"Differences are to {self.baseline}, over the cases that have a value in both; p is that of the Wilcoxon "
            "signed-rank test, not corrected for the number of tests."
        )
        notes = {f"note: {folder}: {note}" for folder, of in self.evaluations.items() for note in of.notes}
        return "\n\n".join([*blocks, *sorted(notes)])

    def _short_names(self) -> dict[str, str]:
        """The names of the folders, or their whole paths where two have the same name."""
        names = {folder: Path(folder).name for folder in self.evaluations}
        return names if len(set(names.values())) == len(names) else {folder: folder for folder in names}

    def _block(self, metric: str) -> str:
        rows = [(metric, "prediction", "first", "mean", "difference", "95 % interval", "p", "pairs")]
        for folder, of_label in self.differences[metric].items():
            for label, found in of_label.items():
                if label == MEAN and len(of_label) == 2:
                    continue  # the same as that of the only class
                low, high = number(metric, found.low, "+"), number(metric, found.high, "+")
                rows.append(
                    (
                        _title(label, self.names),
                        self._short_names()[folder],
                        number(metric, found.first),
                        number(metric, found.second),
                        number(metric, found.mean, "+"),
                        "-" if low == "-" else f"{low} to {high}",
                        "-" if found.p != found.p else f"{found.p:.2g}",
                        str(found.cases),
                    )
                )
        return as_columns(rows)


def evaluate_and_compare(
    reference: Path | str,
    predictions: Sequence[Path | str],
    metrics: Sequence[str] = ("dice",),
    *,
    output: Path | str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Comparison:
    """Scores several folders of predictions, and compares all with the first, case by case.

    Args:
        reference: as for `evaluate`.
        predictions: folders of the same cases; the first is what the others are compared with.
        metrics: as for `evaluate`.
        output: folder for comparison.json and comparison.csv, or the .json file itself.
        overwrite: replace them if they are there.
        options: the other arguments of `evaluate`.

    Raises:
        WrongUse: fewer than two different predictions, or as `evaluate`.
        UserError: as `evaluate`; or the predictions are not of the same cases and classes.
    """
    folders = [str(prediction) for prediction in predictions]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise WrongUse(f"got the predictions {', '.join(folders)}; expected two or more, each once")
    if output is not None:
        output_files(Path(output), COMPARISON, overwrite)
    evaluations = {folder: evaluate(reference, folder, metrics, **options) for folder in folders}
    comparison = compare_evaluations(evaluations)
    if output is not None:
        comparison.write(Path(output), overwrite)
    return comparison


def compare_evaluations(evaluations: Mapping[str, Evaluation]) -> Comparison:
    """Compares evaluations with the first of them, over the cases that all have; a class may be missing in some."""
    names = {label: name for evaluation in evaluations.values() for label, name in evaluation.names.items()}
    common = set.intersection(*({case.case for case in evaluation.cases} for evaluation in evaluations.values()))
    if not common:
        raise UserError(f"{', '.join(evaluations)} have no case in common; expected predictions of the same cases")
    aligned = {folder: _aligned(evaluation, common, names) for folder, evaluation in evaluations.items()}
    first, *others = aligned
    differences: dict[str, dict[str, dict[Label | str, Difference]]] = {}
    for metric, labels in aligned[first].means.items():
        tables = {folder: evaluation.values(metric) for folder, evaluation in aligned.items()}
        keys = [*labels, MEAN]
        differences[metric] = {
            folder: dict(zip(keys, compare(tables[first], tables[folder]), strict=True)) for folder in others
        }
    return Comparison(aligned, differences)


def _aligned(evaluation: Evaluation, cases: set[str], names: Mapping[Label, str]) -> Evaluation:
    kept = [case.filled(names, evaluation.means) for case in evaluation.cases if case.case in cases]
    if len(kept) == len(evaluation.cases) and evaluation.names == names:
        return evaluation
    means = evaluation.means if evaluation.challenge else dict.fromkeys(evaluation.means, tuple(names))
    return publish(replace(evaluation, cases=kept, names=names, means=means))


def _title(label: Label | str, names: Mapping[Label, str]) -> str:
    return label if isinstance(label, str) else title(label, names)
