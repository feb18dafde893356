"""The table of scores: a CSV with a row per unlabeled case, best read by people, spreadsheets and `select`.

Columns: case, score, complete, and for every class score_CLASS, volume_CLASS and components_CLASS. A score of a class
that is absent from the prediction is left empty.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from nnunet_semi.branches import original_of
from nnunet_semi.errors import EnvironmentNotReady, UserError
from nnunet_semi.log import Log
from nnunet_semi.raw import name_some
from nnunet_semi.storage import atomic_path

FIRST = ("case", "score", "complete")
KINDS = ("score", "volume", "components")
PREDICTIONS = "predictions"  # in the work folder: a label map CASE.b2nd of every case, on the grid of the network


@dataclass(frozen=True)
class Row:
    """What is known of one unlabeled case.

    Attributes:
        case: its id.
        score: from 0 to 1, higher is better; 0 for an empty prediction.
        complete: whether every class is in the prediction.
        scores: class → its score; None where the class is absent from the prediction.
        volumes: class → predicted volume, in mm³ (2D images: mm²; formats without spacing: pixels).
        components: class → number of connected components.
    """

    case: str
    score: float
    complete: bool
    scores: dict[str, float | None]
    volumes: dict[str, float]
    components: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """For a line of a part file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Row:
        """What `as_json` gave; raises KeyError for anything else."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def work_folder(table: Path) -> Path:
    """The folder beside a table: its provenance, the parts it was joined from, and the predictions."""
    return table.with_suffix("")


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Writes the rows by case, whole or not at all; the same rows give the same bytes in whatever order they come."""
    ordered = sorted(rows, key=lambda row: row.case)
    text = StringIO()
    names = list(ordered[0].scores) if ordered else []
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIRST, *(f"{kind}_{name}" for name in names for kind in KINDS)])
    for row in ordered:
        values = [
            value
            for name in names
            for value in (_number(row.scores[name]), f"{row.volumes[name]:.6g}", row.components[name])
        ]
        writer.writerow([row.case, _number(row.score), "yes" if row.complete else "no", *values])
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.6f}"


def read_table(path: Path) -> list[Row]:
    """The rows of a table, sorted by case.

    Raises:
        EnvironmentNotReady: there is no such file.
        UserError: it is no table of scores.
    """
    require_table(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets put a byte order mark in front
            records = [record for record in csv.reader(file) if record]
        rows = [_parsed(records[0], record) for record in records[1:]]
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is no table of scores ({error}); expected the columns {', '.join(FIRST)} and those of the classes "
            "as `nnunet_semi score` writes them, separated by commas, with decimal points; make it again"
        ) from error
    if len({row.case for row in rows}) != len(rows) or not rows:
        raise UserError(f"{path} holds {'a case twice' if rows else 'no case'}; make it again with `nnunet_semi score`")
    return sorted(rows, key=lambda row: row.case)


def _parsed(columns: Sequence[str], values: Sequence[str]) -> Row:
    try:
        return _row(dict(zip(columns, values, strict=True)))
    except (ValueError, KeyError) as error:
        raise ValueError(f"got the row {','.join(values)}") from error


def _row(record: Mapping[str, str]) -> Row:
    names = [column.removeprefix("components_") for column in record if column.startswith("components_")]
    score = float(record["score"])
    if not 0 <= score <= 1 or record["complete"] not in ("yes", "no") or not record["case"]:
        raise ValueError(record)
    scores = {name: float(record[f"score_{name}"]) if record[f"score_{name}"] else None for name in names}
    amounts = {name: float(record[f"volume_{name}"]) for name in names}
    if not all(math.isfinite(volume) for volume in amounts.values()):
        raise ValueError(record)
    counts = {name: int(record[f"components_{name}"]) for name in names}
    return Row(record["case"], score, record["complete"] == "yes", scores, amounts, counts)


def default_table(model_folder: Path, by: str, folds: Iterable[int | str], mirroring: bool) -> Path:
    """Where `score` writes unless it is told otherwise: in the folder of the model."""
    name = f"{by}_fold{'_'.join(str(fold) for fold in folds)}{'' if mirroring else '_no_tta'}.csv"
    return model_folder / "unlabeled_scores" / name


def newest_table(dataset: str) -> Path | None:
    """The table of a dataset that was written last, among those in the folders of its models."""
    results = os.environ.get("nnUNet_results")
    tables = Path(results).glob(f"{dataset}/*/unlabeled_scores/*.csv") if results else ()
    return max(tables, key=lambda table: (table.stat().st_mtime_ns, table.name), default=None)


def find_table(dataset: str, table: Path | str | None) -> Path:
    """The table asked for, or the newest of the dataset.

    Raises:
        EnvironmentNotReady: there is none.
    """
    found = newest_table(dataset) if table is None else Path(table).resolve()
    if found is None:
        missing = f"no table of scores for {dataset} is in nnUNet_results"
        raise EnvironmentNotReady(f"{missing}; make one with `nnunet_semi score`, or name it with --table")
    return require_table(found)


def require_table(path: Path) -> Path:
    """The path.

    Raises:
        EnvironmentNotReady: there is no such file.
    """
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise EnvironmentNotReady(f"{path} {reason}; make a table with `nnunet_semi score`, or name one with --table")
    return path


def require_dataset(table: Path, provenance: Mapping[str, Any], dataset: str) -> None:
    """Checks that a table is about a dataset, or about one that shares its unlabeled cases, a branch.

    Args:
        provenance: of the table; empty where it is not known.

    Raises:
        UserError: it is not.
    """
    other = provenance.get("dataset", dataset)
    if original_of(other) != original_of(dataset):
        raise UserError(f"{table} holds the scores of {other}, not of {dataset}; choose another table or dataset")


def current_rows(
    table: Path, rows: Sequence[Row], provenance: Mapping[str, Any], dataset: str, unlabeled: Iterable[str]
) -> list[Row]:
    """The rows of the cases that are still there; a person who looks at scores deletes images.

    Args:
        provenance: of the table; empty where it is not known.
        unlabeled: the unlabeled cases of the dataset.

    Raises:
        UserError: none is, or nothing says that the others ever were.
    """
    known = {*unlabeled}
    current = [row for row in rows if row.case in known]
    unknown = [row.case for row in rows if row.case not in known]
    if unknown and not (provenance and current):
        raise UserError(
            f"{table} names {len(unknown)} case(s) that are not among the unlabeled ones of {dataset} "
            f"({name_some(unknown)}); run `nnunet_semi score` again, or choose another table"
        )
    return current


def tell_unscored(cases: Sequence[str], log: Log) -> None:
    """Says which unlabeled cases have no score, as those whose images came later."""
    if cases:
        log(f"note: {len(cases)} unlabeled case(s) ({name_some(cases)}) have no score; run `nnunet_semi score` again")
