"""The steps of a self-training, each a command that a user could type: nnU-Net's own, or a verb of this project."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunet_semi import raw
from nnunet_semi.selftraining.branch import branch_name
from nnunet_semi.selftraining.folder import RunFolder
from nnunet_semi.selftraining.results import is_validated
from nnunet_semi.unlabeled.selection import SELECTION

DEFAULT_PLANS = "nnUNetPlans"
BEING_WRITTEN = 60.0  # seconds before the last sign of life of a killed prediction, in which a file may be half written


def nothing() -> None:
    """No preparation."""


def never() -> bool:
    """Nothing on disk proves that the step is done."""
    return False


def no_options() -> list[str]:
    """Nothing to add to a command."""
    return []


@dataclass(frozen=True)
class Step:
    """A command to run once.

    Attributes:
        name: under which it is marked as done, such as round_1/train.
        command: its words.
        prepare: what to do before; after a kill, with what that left.
        is_done: whether the disk shows that it was finished, though it was not marked.
        continued: options with which it goes on after a kill.
        fresh: options that it has where it does not go on.
        epochs: of a training.
    """

    name: str
    command: list[str]
    prepare: Callable[[], None] = nothing
    is_done: Callable[[], bool] = never
    continued: Callable[[], list[str]] = no_options
    fresh: tuple[str, ...] = ()
    epochs: int | None = None

    @property
    def shown(self) -> str:
        """As a user would type it."""
        return shlex.join([*self.command, *self.fresh])

    def command_now(self) -> list[str]:
        """The words with which it begins, or goes on with what lies on disk."""
        return [*self.command, *(self.continued() or self.fresh)]


@dataclass(frozen=True)
class Model:
    """The model of a round: the supervised one of round 0, and those of labeled and pseudo-labeled cases.

    Attributes:
        round: its number.
        dataset: full name.
        trainer: class name.
        fold: as nnU-Net's commands take it.
        configuration, plans: of the training.
    """

    round: int
    dataset: str
    trainer: str
    fold: int | str
    configuration: str
    plans: str

    @property
    def options(self) -> list[str]:
        """What tells nnU-Net's prediction, and `nnunet_semi score`, which model it is."""
        model = ["-d", str(raw.dataset_id(self.dataset)), "-c", self.configuration, "-f", str(self.fold)]
        return [*model, "-tr", self.trainer, *plans_option(self.plans)]

    @property
    def folder(self) -> Path:
        """Its fold in nnUNet_results."""
        model = f"{self.trainer}__{self.plans}__{self.configuration}"
        return raw.nnunet_folder(raw.RESULTS) / self.dataset / model / f"fold_{self.fold}"

    def prediction(self, images: str, output: str, checkpoint: str) -> list[str]:
        """nnU-Net's command that predicts with it."""
        chosen = [] if checkpoint == "checkpoint_final.pth" else ["-chk", checkpoint]
        return ["nnUNetv2_predict", "-i", images, "-o", output, *self.options, *chosen]


def plans_option(plans: str) -> list[str]:
    """-p, where the plans are not nnU-Net's default."""
    return [] if plans == DEFAULT_PLANS else ["-p", plans]


def models(run: RunFolder) -> list[Model]:
    """The models of all rounds, in order."""
    settings = run.settings
    names = [settings.dataset, *round_datasets(run)]
    folds: list[int | str] = [settings.fold, *[run.fold] * settings.rounds]
    return [
        Model(number, dataset, trainer, fold, settings.configuration, settings.plans)
        for number, (dataset, trainer, fold) in enumerate(zip(names, settings.trainers, folds, strict=True))
    ]


def round_datasets(run: RunFolder) -> list[str]:
    """The datasets of the rounds from 1 on."""
    return [branch_name(number, short_name(run, count)) for count, number in enumerate(run.numbers, start=1)]


def short_name(run: RunFolder, number: int) -> str:
    """The part of a round's dataset name after the id; each configuration and fold has rounds of its own."""
    settings = run.settings
    own = settings.dataset.partition("_")[2]
    return f"{own}_{settings.configuration}_fold{settings.fold}_round{number}"


def all_steps(run: RunFolder, device: str | None) -> list[Step]:
    """The whole plan, in order."""
    trained = models(run)
    steps = [_preprocessing(run), _training(trained[0], device)]  # bad images are found before hours of training
    for before, model in zip(trained[:-1], trained[1:], strict=True):
        steps += _round(run, before, model, device)
    return steps


def _preprocessing(run: RunFolder) -> Step:
    settings = run.settings
    command = ["nnunet_semi", "preprocess", "-d", str(raw.dataset_id(settings.dataset)), "-c", settings.configuration]
    bad = ["--skip-bad"] if settings.skip_bad else []
    return Step("round_0/preprocess", [*command, *plans_option(settings.plans), *bad])


def _round(run: RunFolder, before: Model, model: Model, device: str | None) -> list[Step]:
    """Scores and selection by the model of the round before, pseudo labels of it, and the training with them."""
    settings, name, number = run.settings, f"round_{model.round}", str(raw.dataset_id(model.dataset))
    table = run.path / name / "scores.csv"
    raw_folder = raw.nnunet_folder(raw.RAW) / model.dataset
    selection = raw.nnunet_folder(raw.PREPROCESSED) / model.dataset / SELECTION
    on_device = ["-device", device] if device else []
    labels = raw_folder / "labelsPs"
    plans = plans_option(settings.plans)
    base = str(raw.dataset_id(settings.dataset))
    return [
        Step(
            f"{name}/score",
            ["nnunet_semi", "score", *before.options, "--by", settings.by, "-o", str(table), *on_device],
            prepare=lambda: table.parent.mkdir(parents=True, exist_ok=True),
            is_done=table.is_file,
        ),
        Step(
            f"{name}/branch",
            ["nnunet_semi", "branch", "-d", base, "--id", number, "--name", short_name(run, model.round), *plans],
        ),
        Step(
            f"{name}/select",
            ["nnunet_semi", "select", "-d", number, "--table", str(table), *settings.rules(model.round)],
            is_done=selection.is_file,
        ),
        Step(f"{name}/images", ["nnunet_semi", "pseudo_images", "-d", number]),
        Step(
            f"{name}/predict",
            [*before.prediction(str(raw_folder / "imagesPs"), str(labels), settings.checkpoint), *on_device],
            prepare=lambda: remove_half_written(labels),
            continued=lambda: ["--continue_prediction"] if labels.is_dir() else [],
        ),
        Step(f"{name}/cases", ["nnunet_semi", "pseudo_cases", "-d", number, "-c", settings.configuration, *plans]),
        _training(model, device, before.folder / settings.checkpoint if settings.warm_start else None),
    ]


def _training(model: Model, device: str | None, weights: Path | None = None) -> Step:
    number = str(raw.dataset_id(model.dataset))
    command = ["nnUNetv2_train", number, model.configuration, str(model.fold), "-tr", model.trainer]
    found = [ending for ending in model.trainer.split("_") if ending.rstrip("s").endswith("epoch")]
    return Step(
        f"round_{model.round}/train",
        [*command, *plans_option(model.plans), *(["-device", device] if device else [])],
        is_done=lambda: (model.folder / "checkpoint_final.pth").is_file() and is_validated(model.folder),
        continued=lambda: continue_training(model.folder),
        fresh=() if weights is None else ("-pretrained_weights", str(weights)),
        epochs=int(found[0].partition("epoch")[0]) if found else None,
    )


def continue_training(folder: Path) -> list[str]:
    """How nnUNetv2_train goes on with what lies in the folder of a fold."""
    if (folder / "checkpoint_final.pth").is_file():
        return ["--val"]  # killed in its validation, which begins anew
    return ["--c"] if any((folder / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best")) else []


def remove_half_written(folder: Path) -> None:
    """Removes the predictions that a killed nnUNetv2_predict may have been writing; it would take them for finished."""
    if not folder.is_dir():
        return
    files = {file: file.stat().st_mtime for file in folder.iterdir() if file.is_file()}
    last = max(files.values(), default=0.0)
    for file, written in files.items():
        if written > last - BEING_WRITTEN:
            file.unlink()
