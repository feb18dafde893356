"""What both trainers reach on the test cases: numbers, a table and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_semi.demo.dataset import LABELS, NAME
from nnunet_semi.demo.folder import PICTURES, PREDICTIONS, SCORES, DemoFolder, Settings
from nnunet_semi.storage import write_json

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerCPS")
CLEAR = 0.05  # a difference of Dice that is told
SHOWN = 8  # test cases in the picture: the first ones, not chosen ones
Scores = dict[str, dict[str, list[float]]]  # trainer → class → Dice of each test case, in the order of the case names


def trainer_names(settings: Settings) -> dict[str, str]:
    """Trainer → the name that also says its length and seed."""
    ending = f"_{settings.epochs}epochs_{settings.iterations}iters_seed{settings.seed}"
    return {trainer: trainer + ending for trainer in TRAINERS}


def compare(place: DemoFolder) -> Scores:
    """Scores the predictions of both trainers, and writes scores.json and the pictures."""
    raw = place.path / "nnUNet_raw" / NAME
    names = trainer_names(place.settings)
    cases = [file.stem for file in sorted((raw / "labelsTs").glob("*.png"))]
    references = {case: read(raw / "labelsTs" / f"{case}.png") for case in cases}
    predictions = {
        trainer: {case: read(place.path / PREDICTIONS / name / f"{case}.png") for case in cases}
        for trainer, name in names.items()
    }
    scores = {trainer: score(of_case, references) for trainer, of_case in predictions.items()}
    write_json(place.path / SCORES, {"cases": cases, "dice": scores})
    images = {case: read(raw / "imagesTs" / f"{case}_0000.png") for case in cases[:SHOWN]}
    _draw(place.path / PICTURES, images, {"reference": references, **predictions}, scores)
    return scores


def _draw(path: Path, images: dict[str, np.ndarray], rows: dict[str, dict[str, np.ndarray]], scores: Scores) -> None:
    from nnunet_semi.demo.pictures import contact_sheet  # matplotlib: not before it is needed

    contact_sheet(
        path,
        list(images.values()),
        {name: [of_case[case] for case in images] for name, of_case in rows.items()},
        {name: list(case_means(of_class)) for name, of_class in scores.items()},
        {label: name for name, label in LABELS.items() if label},
        f"The first {len(images)} test images; the numbers are the mean Dice of each",
    )


def read(path: Path) -> np.ndarray:
    """The pixels of an image or a label map, (height, width)."""
    with Image.open(path) as image:
        return np.array(image)


def score(predictions: Mapping[str, np.ndarray], references: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Class name → Dice of each case of `references`; the background is left out."""
    return {
        name: [dice(predictions[case] == label, reference == label) for case, reference in references.items()]
        for name, label in LABELS.items()
        if label
    }


def dice(predicted: np.ndarray, true: np.ndarray) -> float:
    """2 |A ∩ B| / (|A| + |B|) of two masks of the same shape; NaN where both are empty."""
    size = predicted.sum() + true.sum()
    return float(2 * (predicted & true).sum() / size) if size else float("nan")


def case_means(of_class: Mapping[str, list[float]]) -> np.ndarray:
    """The mean Dice over the classes of each case."""
    return np.nanmean(list(of_class.values()), axis=0)


def summary(place: DemoFolder, scores: Scores) -> str:
    """The table of both trainers, and where the pictures lie."""
    settings = place.settings
    trained_on = (f"{settings.labeled} labeled", f"{settings.labeled} labeled, {settings.unlabeled} unlabeled")
    length = f"{settings.epochs} epochs of {settings.iterations} iterations"
    supervised, semi = (case_means(scores[trainer]) for trainer in TRAINERS)
    better, worse = (int((gain >= CLEAR).sum()) for gain in (semi - supervised, supervised - semi))
    lines = [
        f"Dice on {settings.test} test images, final checkpoints, both after {length} with seed {settings.seed}:",
        "",
        *(f"    {line}" for line in table(scores, dict(zip(TRAINERS, trained_on, strict=True)))),
        "",
        f"{TRAINERS[1]} is better by {CLEAR} or more on {better} of the {settings.test} images, and worse on {worse}.",
        f"pictures: {place.path / PICTURES}",
        f"all steps took {place.seconds / 60:.1f} min",
    ]
    return "\n".join(lines)


def table(scores: Scores, trained_on: Mapping[str, str]) -> list[str]:
    """The lines of a table: a row per trainer, a column per class, and the mean of the classes.

    Args:
        scores: of every trainer.
        trained_on: trainer → what it was trained on, in words.
    """
    classes = list(next(iter(scores.values())))
    names, words = max(map(len, scores)), max(map(len, trained_on.values()))
    lines = [f"{'':<{names}}  {'trained on':<{words}}" + "".join(f"{name:>9}" for name in [*classes, "mean"])]
    for trainer, of_class in scores.items():
        means = [float(np.nanmean(of_class[name])) for name in classes]
        cells = "".join(f"{value:>9.3f}" for value in [*means, float(np.mean(means))])
        lines.append(f"{trainer:<{names}}  {trained_on[trainer]:<{words}}{cells}")
    return lines
