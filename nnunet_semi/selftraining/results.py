"""What each round reached on the validation cases: a table and a picture."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from nnunet_semi import raw
from nnunet_semi.storage import atomic_path

SUMMARY, PICTURE = "summary.csv", "dice_per_round.png"


@dataclass(frozen=True)
class RoundResult:
    """What a round reached.

    Attributes:
        number: of the round; 0 is the first training.
        dataset, trainer: with which it was trained.
        labeled, pseudo_labeled: training cases of each kind.
        dice: mean over the validation cases, and over the foreground classes that are there.
        dice_per_class: class → the mean over the validation cases.
        validation: the summary.json.
        minutes: what its steps took.
    """

    number: int
    dataset: str
    trainer: str
    labeled: int
    pseudo_labeled: int
    dice: float
    dice_per_class: dict[str, float] = field(default_factory=dict)
    validation: Path = Path()
    minutes: float = 0.0


def is_validated(fold_folder: Path) -> bool:
    """Whether nnU-Net's validation of a fold was finished: summary.json is there, and whole."""
    return _validation(fold_folder) is not None


def _validation(fold_folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((fold_folder / "validation" / "summary.json").read_text(encoding="utf-8"))
        float(content["foreground_mean"]["Dice"])
        return content
    except (OSError, ValueError, KeyError, TypeError):
        return None


def validation_dice(fold_folder: Path, labels: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
    """The mean foreground Dice of a fold, and that of each class or region by its name.

    A class that no validation case has, and none was predicted to have, is NaN and left out of the mean, which would be
    NaN otherwise, as it is in nnU-Net's summary: with few labels that is common.

    Args:
        fold_folder: of a training that was validated.
        labels: `labels` of dataset.json.
    """
    content = _validation(fold_folder)
    assert content is not None, f"{fold_folder} was not validated"
    names = {str(tuple(value) if isinstance(value, (list, tuple)) else value): name for name, value in labels.items()}
    per_class = {names.get(key, key): float(values["Dice"]) for key, values in content["mean"].items()}
    found = [dice for dice in per_class.values() if not math.isnan(dice)]
    return statistics.fmean(found) if found else math.nan, per_class


def best_round(results: Sequence[RoundResult]) -> RoundResult:
    """The round with the highest Dice, the first of them where rounds tie; NaN counts as less than any."""
    return max(results, key=lambda result: (result.dice if result.dice == result.dice else -1.0, -result.number))


def improved(results: Sequence[RoundResult]) -> bool:
    """Whether the last round is better than all before it."""
    return best_round(results) is results[-1]


def write_results(folder: Path, results: Sequence[RoundResult]) -> None:
    """Writes the table as CSV and the picture."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = list(results[0].dice_per_class)
    columns = ("round", "dataset", "trainer", "labeled", "pseudo_labeled", "dice")
    writer.writerow([*columns, *(f"dice_{name}" for name in classes), "validation", "minutes"])
    for result in results:
        dice = [f"{value:.6f}" for value in (result.dice, *(result.dice_per_class[name] for name in classes))]
        counts = [result.labeled, result.pseudo_labeled]
        row = [
            result.number,
            result.dataset,
            result.trainer,
            *counts,
            *dice,
            result.validation,
            f"{result.minutes:.1f}",
        ]
        writer.writerow(row)
    with atomic_path(folder / SUMMARY) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    draw(folder / PICTURE, results)


def table(results: Sequence[RoundResult], best: RoundResult) -> list[str]:
    """The lines of a table for people."""
    width = max(len(result.dataset) for result in results)
    lines = [f"round  {'dataset':<{width}}  labeled  pseudo-labeled   Dice"]
    for result in results:
        mark = "  best" if result is best else ""
        counts = f"{result.labeled:>7}  {result.pseudo_labeled:>14}"
        lines.append(f"{result.number:>5}  {result.dataset:<{width}}  {counts}  {result.dice:.3f}{mark}")
    return lines


def draw(path: Path, results: Sequence[RoundResult]) -> None:
    """Draws the Dice of each round, thick for the mean and thin for each class."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    rounds = [result.number for result in results]
    for name in results[0].dice_per_class:
        axes.plot(rounds, [result.dice_per_class[name] for result in results], marker=".", linewidth=1, label=name)
    axes.plot(rounds, [result.dice for result in results], marker="o", linewidth=3, color="black", label="mean")
    for result in results:
        axes.annotate(f"+{result.pseudo_labeled}", (result.number, result.dice), (0, 8), textcoords="offset points")
    axes.set(xlabel="round (+ pseudo-labeled cases)", ylabel="Dice of the validation cases")
    axes.set_title(f"Self-training from {results[0].dataset}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.15)
    axes.legend(loc="best", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def count_cases(dataset: str, fold: int | str, dataset_json: dict[str, Any]) -> tuple[int, int]:
    """How many labeled and how many pseudo-labeled cases a fold of a dataset trains on."""
    from nnunet_semi.selftraining.branch import SPLITS, folds_of

    labeled = raw.labeled_cases(raw.dataset_folder(raw.RAW, dataset), dataset_json)
    if fold == "all":
        return len(labeled), 0
    assert isinstance(fold, int)
    train = folds_of(raw.nnunet_folder(raw.PREPROCESSED) / dataset / SPLITS, sorted(labeled))[fold]["train"]
    own = len(labeled.intersection(train))
    return own, len(train) - own
