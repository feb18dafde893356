"""A trained model in nnUNet_results: its path, made of names that the user gives, and the files in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_semi import raw
from nnunet_semi.errors import EnvironmentNotReady, WrongUse

NEEDED_FILES = ("plans.json", "dataset.json")


@dataclass(frozen=True)
class TrainedModel:
    """A trained model in nnUNet_results: the parts of its path, after which an archive is named as well."""

    results: Path
    dataset: str
    trainer: str
    plans: str
    configuration: str
    folds: tuple[int | str, ...]
    checkpoint: str

    def path_as(self, trainer: str) -> Path:
        """Where nnU-Net would put this model, had it been trained with `trainer`; relative to nnUNet_results."""
        return Path(self.dataset, f"{trainer}__{self.plans}__{self.configuration}")

    @property
    def folder(self) -> Path:
        """With plans.json, dataset.json, and a folder for each fold."""
        return self.results / self.path_as(self.trainer)

    def checkpoint_file(self, fold: int | str) -> Path:
        """The checkpoint of a fold."""
        return self.folder / f"fold_{fold}" / self.checkpoint


def find_model(
    dataset: str | int, configuration: str, trainer: str, plans: str, folds: Sequence[int | str], checkpoint: str
) -> TrainedModel:
    """The model, with every file that it takes to predict in place.

    Raises:
        WrongUse: a name or a fold cannot be one.
        EnvironmentNotReady: the model, a fold or a checkpoint is missing.
    """
    results, dataset = raw.nnunet_folder(raw.RESULTS), raw.dataset_name(dataset)
    for name in (dataset, configuration, trainer, plans, checkpoint):
        if Path(name).name != name:
            raise WrongUse(f"got {name!r}; expected a plain name without folders")
    numbers = tuple(dict.fromkeys(_fold(fold) for fold in folds))
    if not numbers:
        raise WrongUse("got no fold; expected one or more, such as -f 0")
    model = TrainedModel(results, dataset, trainer, plans, configuration, numbers, checkpoint)
    if not model.folder.is_dir():
        trained = sorted(path.name for path in model.folder.parent.glob("*__*__*"))
        there = f"there is {raw.name_some(trained, 5)}" if trained else "nothing is trained on this dataset"
        raise EnvironmentNotReady(f"{model.folder} does not exist ({there}); choose with -c, -tr and -p, or train it")
    needed = [model.folder / name for name in NEEDED_FILES] + [model.checkpoint_file(fold) for fold in numbers]
    for file in needed:
        if not file.is_file():
            raise EnvironmentNotReady(f"{file} does not exist; finish the training, or choose with -f and -chk")
    return model


def _fold(fold: int | str) -> int | str:
    if fold == "all" or str(fold).isdecimal():
        return fold if fold == "all" else int(fold)
    raise WrongUse(f"got fold {fold!r}; expected a number from 0, or all")
