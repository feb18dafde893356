"""What is settled before a self-training begins: that it can work, its folder, and the ids of its datasets."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from nnunet_semi import raw
from nnunet_semi.branches import MARK
from nnunet_semi.errors import EnvironmentNotReady, WrongUse
from nnunet_semi.filtering.rules import listed_cases
from nnunet_semi.log import Log
from nnunet_semi.selftraining.branch import HIGHEST, SPLITS, folds_of, refuse_taken
from nnunet_semi.selftraining.folder import STATE
from nnunet_semi.selftraining.settings import Settings
from nnunet_semi.unlabeled.selection import SELECTION, selected_cases

LOCK = "selftrain.lock"
IDS_LOCK = ".nnunet_semi_ids.lock"  # in nnUNet_raw, held while ids are chosen and reserved
CHECKPOINT = re.compile(r"checkpoint_\w+\.pth")


def check(settings: Settings, plans: dict[str, Any], dataset_json: dict[str, Any], report: Log) -> int:
    """Refuses what cannot work, before anything is done; gives the number of folds of the original."""
    if settings.rounds < 1:
        raise WrongUse(f"got {settings.rounds} rounds; expected 1 or more")
    if settings.stop_early and settings.fold == "all":
        raise WrongUse("got --stop-early with -f all, which has no validation cases of its own; leave one of them out")
    if raw.resolve_configuration(plans, settings.configuration).get("previous_stage") is not None:
        raise WrongUse(
            f"the configuration {settings.configuration} refines predictions of another one, which each round would "
            "have to train too; choose that one, or one without a stage before it"
        )
    if not CHECKPOINT.fullmatch(settings.checkpoint):
        raise WrongUse(f"got -chk {settings.checkpoint}; expected a name such as checkpoint_final.pth")
    _refuse_trainers(settings)
    folder = raw.dataset_folder(raw.RAW, settings.dataset)
    _check_lists(settings, raw.unlabeled_cases(folder, dataset_json), report)
    raw.nnunet_folder(raw.RESULTS)
    labeled = raw.require_labeled_cases(settings.dataset, dataset_json)
    splits = len(folds_of(raw.nnunet_folder(raw.PREPROCESSED) / settings.dataset / SPLITS, labeled))
    if settings.fold != "all" and not splits:
        raise WrongUse(
            f"got fold {settings.fold}, but {settings.dataset} has {len(labeled)} labeled cases, and nnU-Net makes "
            "folds of five and more; pass -f all"
        )
    if settings.fold != "all" and int(settings.fold) >= splits:
        raise WrongUse(
            f"got fold {settings.fold}; expected one of the {splits} folds of {settings.dataset}, from 0, or all"
        )
    return splits


def _check_lists(settings: Settings, unlabeled: Collection[str], report: Log) -> None:
    """Refuses lists that the first selection would refuse, after hours, or that the first training cannot obey."""
    excluded = set() if settings.exclude is None else {*listed_cases(Path(settings.exclude), unlabeled, report)}
    if settings.include is not None:
        excluded |= {*unlabeled} - {*listed_cases(Path(settings.include), unlabeled)}
    selection = raw.nnunet_folder(raw.PREPROCESSED) / settings.dataset / SELECTION
    if not _uses_unlabeled(settings.trainers[0]):
        if selection.is_file() and not settings.lists:
            report(
                f"note: {selection} is not used here, every round selects anew; cases that a person screened are left "
                "out by --exclude FILE"
            )
        return
    selected = selected_cases(selection)
    if selected is not None:
        report(f"note: round 0 trains on the cases of {selection}, later rounds select anew")
    refused = sorted(excluded.intersection(unlabeled if selected is None else selected))
    if refused:
        command = ["nnunet_semi", "select", "-d", str(raw.dataset_id(settings.dataset)), *settings.lists]
        raise WrongUse(
            f"round 0 trains {settings.trainers[0]} on unlabeled images before any selection, also on {len(refused)} "
            f"that {shlex.join(settings.lists)} leaves out ({raw.name_some(refused)}); run `{shlex.join(command)}` "
            "first"
        )


def _uses_unlabeled(name: str) -> bool:
    from nnunet_semi.filtering.model import quiet
    from nnunet_semi.stock import find_trainer_class

    with quiet():
        return "nnUNetTrainerSemi" in (base.__name__ for base in find_trainer_class(name).__mro__)


def _refuse_trainers(settings: Settings) -> None:
    """Refuses trainers of landmarks, and an estimator that would find nothing to compare once training is over."""
    from nnunet_semi.filtering.model import quiet
    from nnunet_semi.stock import find_trainer_class

    for name in dict.fromkeys(settings.trainers[:-1]):
        with quiet():
            trainer = find_trainer_class(name)
            if hasattr(trainer, "map_loss"):
                raise WrongUse(
                    f"got -tr {name}, which finds landmarks; self-training is for label maps, train landmarks with "
                    "nnUNetTrainerHeatmapMeanTeacher, which learns from unlabeled images by itself"
                )
            if settings.by == "mirrors" and not getattr(trainer, "allow_mirroring", True):
                raise WrongUse(f"got --by mirrors, but {name} does not mirror; choose another estimator with --by")
            if settings.by == "checkpoints" and not getattr(trainer, "keep_checkpoints", ()):
                raise WrongUse(
                    f"got --by checkpoints, but {name} keeps none of mid-training; choose nnUNetTrainerKeepCheckpoints "
                    "or another trainer of this project with -tr, or another estimator with --by"
                )
            if settings.by == "networks" and "nnUNetTrainerCPS" not in (base.__name__ for base in trainer.__mro__):
                raise WrongUse(
                    f"got --by networks, but {name} has one network; choose nnUNetTrainerCPS or a variant of it with "
                    "-tr, or another estimator with --by"
                )


def refuse_datasets(base: str, targets: Iterable[str], begun: bool) -> None:
    """Refuses datasets of the rounds that are not of this self-training.

    Args:
        base: the original.
        targets: full names of the datasets of the rounds.
        begun: whether the self-training was begun before, so that they may hold something.

    Raises:
        WrongUse: an id or a name is taken, or another self-training has left its selection, pseudo labels or models.
    """
    for target in targets:
        folder = refuse_taken(base, target)
        used = [path for path in folder.glob("*") if path.name != MARK]
        used += [raw.nnunet_folder(kind) / target for kind in (raw.PREPROCESSED, raw.RESULTS)]
        found = [str(path) for path in used if path.exists()]
        if found and not begun:
            raise WrongUse(
                f"{target} is of another self-training, which left {raw.name_some(found)}; choose another id with "
                "--id, or delete that dataset"
            )


def run_folder(settings: Settings, chosen: str | os.PathLike[str] | None) -> Path:
    if chosen is None:
        name = f"selftraining_{settings.configuration}_fold_{settings.fold}"
        return raw.nnunet_folder(raw.RESULTS) / settings.dataset / name
    path = Path(chosen).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise WrongUse(f"-o {path} is a file; expected a folder, new, empty or of a self-training")
    if path.is_dir() and not (path / STATE).is_file() and any(entry.name != LOCK for entry in path.iterdir()):
        raise WrongUse(f"-o {path} is not empty and holds no self-training; choose a new or an empty folder")
    return path


def choose_numbers(settings: Settings, number: int | None) -> list[int]:
    """Ids for the datasets of the rounds, one after the other."""
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    first = raw.dataset_id(settings.dataset) + 1 if number is None else number
    if number is not None:
        return list(range(number, number + settings.rounds))
    for start in [*range(first, HIGHEST + 1), *range(1, first)]:
        numbers = range(start, start + settings.rounds)
        if numbers[-1] <= HIGHEST and not any(len(find_candidate_datasets(each)) for each in numbers):
            return list(numbers)
    raise EnvironmentNotReady(f"no {settings.rounds} dataset ids in a row are free up to {HIGHEST}; delete a dataset")
