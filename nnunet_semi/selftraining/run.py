"""Self-training: a supervised training, then rounds on labeled and pseudo-labeled cases, by commands one could type."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semi import raw
from nnunet_semi.demo.commands import run_command
from nnunet_semi.demo.progress import TrainingProgress
from nnunet_semi.devices import usable_device
from nnunet_semi.errors import UserError
from nnunet_semi.locks import locked
from nnunet_semi.selftraining.branch import reserve
from nnunet_semi.selftraining.checks import IDS_LOCK, LOCK, check, choose_numbers, refuse_datasets, run_folder
from nnunet_semi.selftraining.folder import RunFolder
from nnunet_semi.selftraining.guard import guarded
from nnunet_semi.selftraining.plan import Model, Step, all_steps, models, round_datasets
from nnunet_semi.selftraining.results import (
    PICTURE,
    RoundResult,
    best_round,
    count_cases,
    improved,
    table,
    validation_dice,
    write_results,
)
from nnunet_semi.selftraining.settings import DEFAULT_TRAINER, Settings, parse_rules, trainer_names
from nnunet_semi.storage import atomic_path
from nnunet_semi.unlabeled.selection import SELECTION

PARTS = ("RANK", "WORLD_SIZE")  # of torchrun, by which `nnunet_semi score` would do a part only
Report = Callable[[str], None]


@dataclass(frozen=True)
class SelftrainResult:
    """What a self-training reached.

    Attributes:
        folder: with the tables, selections and validation results of all rounds.
        rounds: what each of them reached, round 0 first.
        best: the one with the highest Dice.
        prediction: the command that predicts with its model.
    """

    folder: Path
    rounds: list[RoundResult]
    best: RoundResult
    prediction: str

    def __str__(self) -> str:
        lines = [
            *table(self.rounds, self.best),
            "",
            f"picture: {self.folder / PICTURE}",
            f"predict with the best model: {self.prediction}",
        ]
        return "\n".join(lines)


def show(line: str) -> None:
    """Prints a line at once, also into a pipe."""
    print(line, flush=True)


def selftrain(
    dataset: str | int,
    configuration: str,
    fold: int | str = 0,
    rounds: int = 4,
    first: str = "top:.5",
    later: str = "threshold:.9,complete",
    trainer: str = DEFAULT_TRAINER,
    epochs: Sequence[int] | None = None,
    by: str = "checkpoints",
    *,
    plans: str = "nnUNetPlans",
    checkpoint: str = "checkpoint_final.pth",
    number: int | None = None,
    warm_start: bool = False,
    stop_early: bool = False,
    skip_bad: bool = False,
    exclude: str | os.PathLike[str] | None = None,
    include: str | os.PathLike[str] | None = None,
    device: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    report: Report = show,
) -> SelftrainResult | None:
    """Trains on the labeled cases, and then in rounds on them and on unlabeled ones with pseudo labels.

    Every round scores all unlabeled cases by the model of the round before, selects those to trust, predicts them with
    mirroring, and trains in a dataset of its own, a branch of the original. The original is not changed. Killed at any
    moment and called again with the same settings, it goes on where it was.

    Args:
        dataset: name or id, planned and preprocessed, with unlabeled images in imagesUn.
        configuration: of all trainings; not the second stage of a cascade.
        fold: a number, or "all".
        rounds: trainings with pseudo labels, after the first one.
        first, later: rules of the first selection and of those that follow; see `settings.parse_rules`.
        trainer: class name; endings such as _seed0 make the whole repeatable.
        epochs: see `settings.trainer_names`.
        by: estimator of `nnunet_semi score`.
        plans: name of the plans file.
        checkpoint: whose predictions are the pseudo labels.
        number: dataset id of round 1, which the others follow; None takes the first free ones after the original's.
        warm_start: begin each round with the weights of the one before; else each begins anew.
        stop_early: end after the first round that does not improve the Dice of the validation cases.
        skip_bad: go without unlabeled images that cannot be used.
        exclude: file with cases that no round may use, one a line, as `nnunet_semi screen` saves it.
        include: file with the only cases that a round may use.
        device: "cpu", "cuda" or "mps"; None takes a GPU if there is one.
        folder: of the tables and results; None stands for one in nnUNet_results/DATASET.
        dry_run: report the plan and do nothing.
        report: takes what a user should see, a line or a few at a time.

    Returns:
        What was reached; None for a dry run.

    Raises:
        WrongUse: a setting that cannot mean anything, or another one than the folder was begun with.
        EnvironmentNotReady: the dataset is not planned, has no unlabeled images, or PyTorch cannot use the device.
        UserError: a command failed; the sentence names its log file.
    """
    name = raw.dataset_name(dataset)
    content, dataset_json = raw.load_plans(name, plans)
    settings = Settings(
        name,
        configuration,
        plans,
        fold,
        rounds,
        trainer_names(trainer, epochs, rounds),
        parse_rules(first),
        parse_rules(later),
        by,
        checkpoint,
        warm_start,
        stop_early,
        skip_bad,
        None if exclude is None else os.path.abspath(exclude),
        None if include is None else os.path.abspath(include),
    )
    path = run_folder(settings, folder)
    begun = RunFolder.load(path, settings, number)
    splits = check(settings, content, dataset_json, report)
    run = begun or _new(path, settings, number, splits)
    refuse_datasets(name, round_datasets(run), run.exists)
    device = device or _choose_device(report)
    if dry_run:
        _show_plan(run, all_steps(run, device), report)
        return None
    usable_device(device)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path / LOCK) as mine:
        if not mine:
            raise UserError(f"another self-training is at work in {path}; wait for it, or choose another folder")
        run = _begin(run, number, splits)
        return _run(run, all_steps(run, device), dataset_json, device, report)


def _new(path: Path, settings: Settings, number: int | None, splits: int) -> RunFolder:
    fold = splits if settings.fold == "all" else int(settings.fold)  # a branch's last fold is that of all cases
    return RunFolder(path, settings, choose_numbers(settings, number), fold)


def _begin(run: RunFolder, number: int | None, splits: int) -> RunFolder:
    """Keeps the datasets of the rounds; self-trainings of several folds may begin at once, and get ids of their own."""
    with locked(raw.nnunet_folder(raw.RAW) / IDS_LOCK, wait=True):
        if not run.exists:
            run = _new(run.path, run.settings, number, splits)  # ids that were free may be taken by now
            refuse_datasets(run.settings.dataset, round_datasets(run), begun=False)
        for target in round_datasets(run):
            reserve(run.settings.dataset, target)
        run.write()
    return run


def _choose_device(report: Report) -> str:
    import torch

    found = torch.cuda.is_available()
    report(f"device: {'cuda' if found else 'cpu'}, because PyTorch finds {'a' if found else 'no'} GPU")
    return "cuda" if found else "cpu"


def _show_plan(run: RunFolder, steps: list[Step], report: Report) -> None:
    ended = " (ends after the first round that does not improve)" if run.settings.stop_early else ""
    report(f"self-training in {run.path}: {run.settings.rounds} round(s) after the first training{ended}")
    for model in models(run):
        report(f"# round {model.round}: {model.dataset}")
        for step in _of_round(steps, model):
            report(step.shown)


def _of_round(steps: list[Step], model: Model) -> list[Step]:
    return [step for step in steps if step.name.startswith(f"round_{model.round}/")]


def _run(
    run: RunFolder, steps: list[Step], dataset_json: dict[str, Any], device: str, report: Report
) -> SelftrainResult:
    (run.path / "logs").mkdir(exist_ok=True)
    report(f"self-training in {run.path}; the output of its commands goes to its logs/")
    results: list[RoundResult] = []
    trained = models(run)
    for model in trained:
        for step in _of_round(steps, model):
            _do(run, step, f"[{steps.index(step) + 1}/{len(steps)}]", report)
        results.append(_result(run, model, dataset_json))
        write_results(run.path, results)
        report(f"round {model.round}: Dice {results[-1].dice:.3f} on the validation cases")
        if run.settings.stop_early and not improved(results):
            report(f"round {model.round} is not better than those before; that was the last")
            break
    best = results[-1] if run.settings.fold == "all" else best_round(results)  # Dice of what was trained on says little
    command = trained[best.number].prediction("INPUT_FOLDER", "OUTPUT_FOLDER", "checkpoint_final.pth")
    return SelftrainResult(run.path, results, best, shlex.join([*command, "-device", device]))


def _do(run: RunFolder, step: Step, count: str, report: Report) -> None:
    if run.is_done(step.name):
        report(f"{count} done before: {step.shown}")
        return
    if step.is_done():
        report(f"{count} found done: {step.shown}")
        run.mark_done(step.name, 0.0)
        return
    started = time.monotonic()
    command = step.command_now()
    report(f"{count} $ {shlex.join(command)}")
    step.prepare()
    _call(run, step, command, report)
    seconds = time.monotonic() - started
    run.mark_done(step.name, seconds)
    report(f"    done in {seconds:.0f} s")


def _call(run: RunFolder, step: Step, command: list[str], report: Report) -> None:
    from nnunet_semi.discovery import VARIABLE, extended_search_path

    alone = {name: value for name, value in os.environ.items() if name not in PARTS}
    variables = {**alone, VARIABLE: extended_search_path(), "PYTHONUNBUFFERED": "1"}
    log = run.path / "logs" / f"{step.name.replace('/', '_')}.log"
    try:
        if step.epochs is None:
            run_command(command, variables, log, guard=guarded)
        else:
            with TrainingProgress(step.epochs, report) as progress:
                run_command(command, variables, log, progress.watch, guard=guarded)
    except KeyboardInterrupt:
        report("to go on: the same command again")
        raise


def _result(run: RunFolder, model: Model, dataset_json: dict[str, Any]) -> RoundResult:
    """What a round reached; its selection and validation are kept beside its table."""
    kept = run.path / f"round_{model.round}"
    kept.mkdir(exist_ok=True)
    validation = model.folder / "validation" / "summary.json"
    selection = raw.nnunet_folder(raw.PREPROCESSED) / model.dataset / SELECTION
    _keep(validation, kept / "validation.json")
    if model.round and selection.is_file():
        _keep(selection, kept / "selection.json")
    dice, per_class = validation_dice(model.folder, dataset_json["labels"])
    labeled, pseudo = count_cases(model.dataset, model.fold, dataset_json)
    minutes = run.seconds(f"round_{model.round}/") / 60
    return RoundResult(model.round, model.dataset, model.trainer, labeled, pseudo, dice, per_class, validation, minutes)


def _keep(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
