"""The demo: makes a dataset, trains with and without unlabeled images by the real commands, and compares."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_semi.demo.comparison import Scores, compare, summary
from nnunet_semi.demo.folder import PICTURES, DemoFolder, Settings, open_folder
from nnunet_semi.demo.steps import Step, all_steps
from nnunet_semi.devices import usable_device
from nnunet_semi.errors import WrongUse
from nnunet_semi.raw import FOLDERS

Report = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """What a demo found.

    Attributes:
        folder: where everything lies.
        dice: trainer → class → Dice of each test case.
        pictures: the sheet with test images and both predictions.
        seconds: what all steps took together, also over several runs.
        summary: the table of both trainers and where the pictures lie, in words; also what str() gives.
    """

    folder: Path
    dice: Scores
    pictures: Path
    seconds: float
    summary: str

    def __str__(self) -> str:
        return self.summary


def show(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


def demo(
    folder: str | os.PathLike[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    report: Report = show,
    *,
    epochs: int = 12,
    iterations: int = 100,
    width: int = 8,
    labeled: int = 4,
    unlabeled: int = 60,
    test: int = 20,
) -> DemoResult:
    """Trains nnUNetTrainer and nnUNetTrainerCPS on a small made dataset and compares them on test cases.

    Everything is done by the commands a user would type, with nnU-Net's three folders inside the demo's. Both
    trainings have the same length, seed and labeled images, and both are judged by their final checkpoint. A demo that
    was stopped goes on where it was when it is called again with the same folder and settings.

    Args:
        folder: new, empty, or with a demo in it; None makes one among the temporary ones, which stays.
        device: "cpu" or "cuda"; None takes a GPU if there is one.
        seed: of the images and of both trainings.
        overwrite: begin anew in a folder that holds a demo.
        report: takes what a user should see, a line or a few at a time.
        epochs, iterations, width: length of both trainings, width of the network.
        labeled, unlabeled, test: numbers of cases.

    Raises:
        WrongUse: a number below 1, another device, or a folder that holds something else than this demo.
        EnvironmentNotReady: a command of nnU-Net is not installed, or PyTorch sees no GPU for "cuda".
        UserError: a command failed; the sentence names its log file.
    """
    settings = Settings(seed, epochs, iterations, width, labeled, unlabeled, test)
    _check(settings, device)
    place = open_folder(None if folder is None else Path(folder), settings, overwrite)
    report(f"demo in {place.path}{', continued' if place.continued else ''}")
    report(f"the commands below run in it, with {', '.join(FOLDERS)} inside it; their output goes to its logs/")
    device = device or _choose_device(report)
    try:
        _run(all_steps(place, device, report), place, report)
    except KeyboardInterrupt:
        report(f"to go on: nnunet_semi demo -o {shlex.quote(str(place.path))}")
        raise
    scores = compare(place)
    result = DemoResult(place.path, scores, place.path / PICTURES, place.seconds, summary(place, scores))
    report(f"\n{result}")
    return result


def _check(settings: Settings, device: str | None) -> None:
    if device not in (None, "cpu", "cuda"):
        raise WrongUse(f"got device {device!r}; expected 'cpu' or 'cuda', or none to have it chosen")
    usable_device(device)
    for name, value in asdict(settings).items():
        least = 0 if name == "seed" else 1
        if value < least:
            raise WrongUse(f"got {name} {value}; expected a whole number of {least} or more")


def _choose_device(report: Report) -> str:
    import torch

    found = torch.cuda.is_available()
    report(f"device: {'cuda' if found else 'cpu'}, because PyTorch finds {'a' if found else 'no'} GPU")
    return "cuda" if found else "cpu"


def _run(steps: list[Step], place: DemoFolder, report: Report) -> None:
    for number, step in enumerate(steps, start=1):
        if place.is_done(step.name):
            report(f"[{number}/{len(steps)}] done before: {step.shown}")
            continue
        report(f"[{number}/{len(steps)}] {step.shown}")
        started = time.monotonic()
        step.act()
        seconds = time.monotonic() - started
        place.mark_done(step.name, seconds)
        report(f"    done in {seconds:.0f} s")
