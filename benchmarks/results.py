"""The results of a benchmark: a CSV with a row per run, and the table that is made of it."""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import ALL

# Runs that agree in these may be compared with each other.
PROTOCOL = ("task", "test", "configuration", "epochs", "iterations", "device", "mirroring", "ending")
IDENTITY = (*PROTOCOL, "trainer", "labeled", "seed")
SUPERVISED = "nnUNetTrainer"

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """All rows of a results file; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row, and a column where it brings a new one; the file is replaced as a whole, so a stop loses nothing."""
    rows = [*read_rows(path), {name: str(value) for name, value in row.items()}]
    columns = list(dict.fromkeys(name for r in rows for name in r))
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def is_done(rows: Iterable[Row], identity: Mapping[str, Any]) -> bool:
    """Whether a run is among the rows."""
    wanted = {name: str(value) for name, value in identity.items()}
    return any(all(row.get(name, "") == value for name, value in wanted.items()) for row in rows)


def gap_share(few: float, method: float, full: float) -> float | None:
    """The share of the way from few labels to all labels that a method goes; None where all labels do not help."""
    return (method - few) / (full - few) if full > few else None


def markdown(rows: Sequence[Row]) -> str:
    """A table for every protocol among the rows: a line per trainer and labeled count, mean ± deviation over seeds."""
    return "\n\n".join(
        _table(dict(zip(PROTOCOL, protocol, strict=True)), [r for r in rows if _key(r, PROTOCOL) == protocol])
        for protocol in dict.fromkeys(_key(row, PROTOCOL) for row in rows)
    )


def _key(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(row.get(name, "") for name in columns)


def _table(protocol: Row, rows: list[Row]) -> str:
    classes = [name for name in rows[0] if name.startswith("dice_") and any(row.get(name) for row in rows)]
    names = [name.removeprefix("dice_") for name in classes]
    head = ["trainer", "labeled", "seeds", *names, "mean Dice", "of the gap", "training s", "GPU MiB"]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=_order):
        groups.setdefault(_key(row, ("labeled", "trainer")), []).append(row)
    means = {group: statistics.fmean(float(row["dice"]) for row in members) for group, members in groups.items()}
    lines = [_line(group, members, classes, means) for group, members in groups.items()]
    title = (
        f"{protocol['task']}, {protocol['configuration']}, {protocol['epochs']} × {protocol['iterations']} iterations, "
        f"{protocol['device']}, {rows[0]['cases']} {protocol['test']} cases"
        + ("" if protocol["mirroring"] == "True" else ", no mirrored copies")
        + (f", names end in {protocol['ending']}" if protocol["ending"] else "")
    )
    return "\n".join([title, "", *map(_cells, [head, ["---"] * len(head), *lines])])


def _order(row: Row) -> tuple[bool, int, bool, str]:
    """Few labels before many and all last, the supervised trainer before the others."""
    full = row["labeled"] == ALL
    return full, 0 if full else int(row["labeled"]), row["trainer"] != SUPERVISED, row["trainer"]


def _line(
    group: tuple[str, ...], rows: Sequence[Row], classes: Sequence[str], means: Mapping[tuple[str, ...], float]
) -> list[str]:
    labeled, trainer = group
    few, full = means.get((labeled, SUPERVISED)), means.get((ALL, SUPERVISED))
    share = None if few is None or full is None else gap_share(few, means[group], full)
    seconds = [float(row["train_seconds"]) for row in rows if row.get("train_seconds")]
    memory = [float(row["gpu_mib"]) for row in rows if row.get("gpu_mib")]
    return [
        trainer,
        labeled,
        str(len(rows)),
        *(mean_and_deviation([float(row[name]) for row in rows]) for name in [*classes, "dice"]),
        "" if share is None else f"{100 * share:.0f} %",
        f"{statistics.median(seconds):.0f}" if seconds else "",
        f"{max(memory):.0f}" if memory else "",
    ]


def mean_and_deviation(values: Sequence[float]) -> str:
    """Such as '.765 ± .012'; the sample's standard deviation, left out for a single value."""
    figures = [statistics.fmean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(f"{figure:.3f}".removeprefix("0") for figure in figures)


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
