"""Which results a folder holds: folds of a trained model, or the scores that `nnunet_semi evaluate -o` left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_semi.errors import UserError

SUMMARY = "summary.json"
TRACES = ("training_log_*.txt", "checkpoint_*.pth", "debug.json")  # of a training


@dataclass(frozen=True)
class Result:
    """One thing to report on.

    Attributes:
        folder: of the fold, or of the scores.
        summary: the scores, or None where a training has not been validated.
        trained: whether `folder` is a fold of a trained model.
    """

    folder: Path
    summary: Path | None
    trained: bool

    @property
    def model(self) -> Path:
        """The folder above a fold, with plans.json and dataset.json."""
        return self.folder.parent

    @property
    def title(self) -> str:
        """What is reported on, in words."""
        if not self.trained:
            return f"Scores in {Path(*self.folder.absolute().parts[-2:])}"
        trainer, plans, configuration = (self.model.name.split("__") + ["", ""])[:3]
        where = f", {configuration}" if configuration else ""
        return f"{trainer}{where}, {self.folder.name.replace('_', ' ')}"


def find_results(folders: Sequence[Path]) -> list[Result]:
    """The results in the folders, in their order; a trainer's folder stands for all its folds.

    Raises:
        UserError: a folder holds none.
    """
    return [result for folder in folders for result in _results_in(folder)]


def _results_in(folder: Path) -> list[Result]:
    if folder.is_file() and folder.suffix == ".json":
        return [Result(folder.parent, folder, False)]
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a fold folder of nnUNet_results, or an output of evaluate -o")
    if _is_fold(folder):
        return [_fold(folder)]
    if (folder / SUMMARY).is_file():
        return [Result(folder, folder / SUMMARY, False)]
    folds = [path for path in sorted(folder.glob("fold_*")) if _is_fold(path)]
    if not folds:
        raise UserError(
            f"{folder} holds no result; expected a fold folder of nnUNet_results (with a training log or checkpoints), "
            "the folder of a trainer with folds, or an output of `nnunet_semi evaluate -o`"
        )
    return [_fold(path) for path in folds]


def _is_fold(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in TRACES)


def _fold(folder: Path) -> Result:
    summary = folder / "validation" / SUMMARY
    return Result(folder.absolute(), summary if summary.is_file() else None, True)
