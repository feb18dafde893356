"""The steps of the demo, each the command that a user would type, or the little that has no command."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from nnunet_semi.demo.commands import environment, run_command
from nnunet_semi.demo.comparison import trainer_names
from nnunet_semi.demo.dataset import NAME, write_dataset
from nnunet_semi.demo.folder import PREDICTIONS, DemoFolder
from nnunet_semi.demo.progress import TrainingProgress

ID = 990


@dataclass(frozen=True)
class Step:
    """Something to do once.

    Attributes:
        name: under which it is marked as done.
        shown: what the user sees of it.
        act: does it; doing it again after it was interrupted does no harm.
    """

    name: str
    shown: str
    act: Callable[[], object]


def all_steps(place: DemoFolder, device: str, report: Callable[[str], None]) -> list[Step]:
    """Everything up to the predictions of both trainers, in order."""
    width = place.settings.width
    names = trainer_names(place.settings).values()
    return [
        _dataset(place),
        _command(place, "plan", f"nnUNetv2_plan_and_preprocess -d {ID} -c 2d -npfp 1 -np 1 --verify_dataset_integrity"),
        _command(place, "narrow", f"nnunet_semi narrow -d {ID} -c 2d --width {width}"),
        _command(place, "preprocess", f"nnunet_semi preprocess -d {ID} -c {configuration(place)} -np 1"),
        *(_training(place, trainer, device, report) for trainer in names),
        *(_prediction(place, trainer, device) for trainer in names),
    ]


def configuration(place: DemoFolder) -> str:
    """The configuration that both trainers use."""
    return f"2d_w{place.settings.width}"


def _command(place: DemoFolder, name: str, command: str, watch: Callable[[str], None] = lambda text: None) -> Step:
    def call() -> None:
        log = place.path / "logs" / f"{name}.log"
        run_command(shlex.split(command), environment(place.path), log, watch, folder=place.path)

    return Step(name, f"$ {command}", call)


def _dataset(place: DemoFolder) -> Step:
    settings, raw = place.settings, place.path / "nnUNet_raw"
    counts = {"Tr": settings.labeled, "Un": settings.unlabeled, "Ts": settings.test}
    shown = f"{counts['Tr']} labeled, {counts['Un']} unlabeled and {counts['Ts']} test images: nnUNet_raw/{NAME}"
    return Step("dataset", shown, lambda: write_dataset(raw, settings.seed, counts))


def _training(place: DemoFolder, trainer: str, device: str, report: Callable[[str], None]) -> Step:
    command = f"nnUNetv2_train {ID} {configuration(place)} all -tr {trainer} -device {device}"
    results = place.path / "nnUNet_results" / NAME / f"{trainer}__nnUNetPlans__{configuration(place)}" / "fold_all"
    if any(results.glob("checkpoint_*.pth")):
        command += " --c"  # a demo that goes on
    step = _command(place, f"train_{trainer}", command)

    def train() -> None:
        with TrainingProgress(place.settings.epochs, report) as progress:
            _command(place, step.name, command, progress.watch).act()

    return Step(step.name, step.shown, train)


def _prediction(place: DemoFolder, trainer: str, device: str) -> Step:
    command = (
        f"nnUNetv2_predict -i nnUNet_raw/{NAME}/imagesTs -o {PREDICTIONS}/{trainer} -d {ID} "
        f"-c {configuration(place)} -f all -tr {trainer} -device {device} -npp 1 -nps 1"
    )
    return _command(place, f"predict_{trainer}", command)
