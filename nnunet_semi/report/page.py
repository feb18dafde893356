"""`nnunet_semi report`: the page, from what was found to one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunet_semi import __version__
from nnunet_semi.errors import UserError
from nnunet_semi.report.cases import draw_case
from nnunet_semi.report.charts import MOST_CLASSES, box_chart, curves_chart
from nnunet_semi.report.results import Result, find_results
from nnunet_semi.report.scores import DISTANCES, Case, Scores, read_scores
from nnunet_semi.report.training import Curve, Training, read_training
from nnunet_semi.storage import atomic_path

LARGEST = 5_000_000  # bytes of the file
SIZES = (480, 320, 220, 140)  # pixels of the pictures of cases, the first that fit
MOST_ROWS = 60  # of a table


@dataclass(frozen=True)
class Figure:
    """A picture with what is said about it.

    Attributes:
        source: a data URI.
        alt: what there is to see, for those who do not see it.
        caption: below it.
    """

    source: str
    alt: str
    caption: str


@dataclass
class Section:
    """What the page says about one result."""

    title: str
    anchor: str
    facts: dict[str, str] = field(default_factory=dict)
    curves: list[Figure] = field(default_factory=list)
    shares: list[tuple[str, str]] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    box: Figure | None = None
    cases: list[Figure] = field(default_factory=list)
    landmarks: bool = False
    notes: list[str] = field(default_factory=list)
    score: str = "-"
    metric: str = ""
    number: int = 0


def report(folders: Sequence[Path | str], output: Path | str, *, overwrite: bool = False) -> Path:
    """Writes an HTML file about the results in the folders.

    Args:
        folders: fold folders of nnUNet_results, folders of trainers with folds, outputs of `evaluate -o`.
        output: the file to write.
        overwrite: replace it if it is there.

    Returns:
        The output.

    Raises:
        UserError: a folder holds no result, something in it cannot be read, or the output exists.
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; choose another -o, or pass --overwrite to replace it")
    if not output.absolute().parent.is_dir():
        raise UserError(f"the folder {output.absolute().parent} does not exist; make it, or choose another -o")
    page = make_page(find_results([Path(folder) for folder in folders]))
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def make_page(results: Sequence[Result]) -> str:
    """The HTML, with pictures as large as they can be for all of it to stay below `LARGEST` bytes."""
    read = [
        (result, read_training(result) if result.trained else None, read_scores(result) if result.summary else None)
        for result in results
    ]
    sections = [_section(number, *parts) for number, parts in enumerate(read, 1)]
    notes = [section.notes for section in sections]
    for size in SIZES:
        for section, said, (_, _, scores) in zip(sections, notes, read, strict=True):
            section.cases, missing = _cases(scores, size) if scores else ([], [])
            section.notes = said + missing
        page = _render(sections)
        if len(page.encode()) < LARGEST:
            return page
    raise UserError(
        f"the report on {len(results)} results is larger than {LARGEST // 1_000_000} MB; give fewer folders at once"
    )


def _render(sections: Sequence[Section]) -> str:
    environment = Environment(
        loader=PackageLoader("nnunet_semi.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return environment.get_template("report.html.j2").render(sections=sections, version=__version__, made=made)


def _section(number: int, result: Result, training: Training | None, scores: Scores | None) -> Section:
    """All but the pictures of cases."""
    section = Section(result.title, f"result-{number}", number=number)
    if training:
        section.facts |= training.facts
        section.notes += training.notes
        section.curves = [_curves(title, curves) for title, curves in training.charts.items()]
        section.shares = [(name, _share(value)) for name, value in training.shares.items()]
    if scores is None:
        section.notes.append(
            "There is no validation/summary.json: the model was not validated, so there are no scores."
        )
        return section
    section.landmarks = scores.landmarks
    section.facts |= {"scored cases": str(len(scores.cases)), **scores.facts}
    if not training:
        section.facts["scores"] = str(result.summary)
    section.notes += scores.notes
    section.headings, section.rows = _table(scores)
    if len(scores.classes) > MOST_ROWS:
        section.notes.append(f"The table shows {MOST_ROWS} of {len(scores.classes)} classes.")
    table = scores.table(scores.main)
    section.metric = scores.heading(scores.main)
    section.score = _value(scores.main, scores.mean_of_classes(scores.main))
    known = np.flatnonzero((~np.isnan(table)).any(axis=0))
    if len(known):
        names = [list(scores.classes.values())[index] for index in known]
        section.box = _box(table[:, known], names, scores.heading(scores.main), scores.kind)
    return section


# --- figures ---


def _curves(title: str, curves: Mapping[str, Curve]) -> Figure:
    last = []
    for name, curve in curves.items():
        known = [value for value in curve.values() if not math.isnan(value)]
        last.append(f"{name} from {known[0]:.3g} to {known[-1]:.3g}" if known else f"{name} without values")
    epochs = max((max(curve) for curve in curves.values() if curve), default=0) + 1
    alt = f"Line chart over {epochs} epochs. {title}: {'; '.join(last)}."
    return Figure(_data("png", curves_chart(curves)), alt, title)


def _box(table: np.ndarray, names: list[str], metric: str, kind: str) -> Figure:
    said = []
    for name, column in list(zip(names, table.T, strict=True))[:MOST_CLASSES]:
        known = column[~np.isnan(column)]
        if len(known):
            said.append(f"{name}: median {np.median(known):.3g}, from {known.min():.3g} to {known.max():.3g}")
    alt = f"Box plot of {metric} per {kind} over {len(table)} cases. {'; '.join(said)}."
    return Figure(_data("png", box_chart(table, names, metric)), alt, f"{metric} per {kind}; a dot is a case")


def _cases(scores: Scores, size: int) -> tuple[list[Figure], list[str]]:
    """Pictures of the worst, the median and the best case, and why some are not there."""
    ranking = scores.ranking()
    places = {"Worst": 0, "Median": (len(ranking) - 1) // 2, "Best": len(ranking) - 1}
    figures, notes, shown = [], [], set()
    for word, place in places.items():
        if not ranking or place in shown:
            continue
        shown.add(place)
        case, value = ranking[place]
        try:
            picture, missing = draw_case(case, scores.landmarks, size)
        except UserError as error:
            notes.append(f"There is no picture of the {word.lower()} case {case.name}: {error}.")
            continue
        if missing:
            notes.append(f"The {word.lower()} case {case.name} is drawn on grey: {missing}.")
        figures.append(
            _figure_of(word, case, f"{scores.main} {_with_unit(scores.main, value, scores.unit)}", scores, picture)
        )
    return figures, notes


def _figure_of(word: str, case: Case, score: str, scores: Scores, picture: bytes) -> Figure:
    what = "landmarks" if scores.landmarks else "contours"
    values = [
        f"{name} {_value(scores.main, case.values.get(label, {}).get(scores.main, math.nan))}"
        for label, name in list(scores.classes.items())[:20]
    ]
    alt = f"{word} case, {case.name}: {what} of reference (red) and prediction (green). {', '.join(values)}."
    return Figure(_data("jpeg", picture), alt, f"{word}: {case.name}, {score}")


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# --- the table ---


def _table(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: the mean of every metric; of the main one also its spread and what is not defined."""
    main = scores.main
    headings = [scores.kind, f"{scores.heading(main)}: mean", "SD", "median"]
    intervals = scores.intervals.get(main, {})
    headings += ["95 % interval"] if intervals else []
    others = [metric for metric in scores.metrics if metric != main]
    headings += [*map(scores.heading, others), "cases", "not defined"]
    tables = {metric: scores.table(metric) for metric in scores.metrics}
    rows = []
    for column, (label, name) in enumerate(list(scores.classes.items())[:MOST_ROWS]):
        values = tables[main][:, column]
        known = values[~np.isnan(values)]
        row = [name, *(_value(main, float(f(known)) if len(known) else math.nan) for f in (np.mean, _sd, np.median))]
        if intervals:
            low, high = (_value(main, end) for end in intervals.get(label, (math.nan, math.nan)))
            row.append("-" if low == "-" else f"{low} to {high}")
        row += [_value(metric, _mean(tables[metric][:, column])) for metric in others]
        rows.append([*row, str(len(known)), str(len(values) - len(known))])
    if len(scores.classes) > 1:
        means = [_value(metric, scores.mean_of_classes(metric)) for metric in others]
        between = [""] * (3 if intervals else 2)  # SD, median and interval
        row = [f"mean of {scores.kinds}", _value(main, scores.mean_of_classes(main)), *between, *means, "", ""]
        rows.append(row)
    return headings, rows


def _sd(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _value(metric: str, value: float) -> str:
    if math.isnan(value):
        return "-"
    if metric.startswith("SDR") or metric in ("missed", "invented"):
        return f"{100 * value:.1f} %"
    return f"{value:.2f}" if metric in DISTANCES else f"{value:.4f}"


def _with_unit(metric: str, value: float, unit: str) -> str:
    return _value(metric, value) + (f" {unit}" if metric in DISTANCES else "")


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"
