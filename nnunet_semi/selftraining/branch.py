"""A dataset that shares images, labels, plans and preprocessed cases with another one: `nnunet_semi branch`.

A round of self-training adds training cases. It gets a dataset of its own for that, so that nothing of the original
changes: what pseudo-labeled cases must never enter (fingerprint, gt_segmentations, validation) is the original's. The
files are links, so that a branch costs no space and nothing is preprocessed again.
"""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

from nnunet_semi import raw
from nnunet_semi.branches import MARK
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse, cause_of
from nnunet_semi.selftraining.links import point_to, share, share_files
from nnunet_semi.storage import atomic_path, write_json

SPLITS = "splits_final.json"
SHARED_IMAGES = ("imagesTr", "labelsTr", "imagesUn")
HIGHEST = 999  # nnU-Net takes Dataset1000 for a candidate of id 100


def branch_name(number: int, name: str) -> str:
    """The name of a dataset.

    Raises:
        WrongUse: the number or the name cannot be one.
    """
    if not 1 <= number <= HIGHEST:
        raise WrongUse(f"got the dataset id {number}; expected 1 to {HIGHEST}; choose another with --id")
    if not name or Path(name).name != name or name.startswith("."):
        raise WrongUse(f"got the dataset name {name!r}; expected letters, digits and '_'; choose another with --name")
    return f"Dataset{number:03d}_{name}"


def refuse_taken(base: str, target: str) -> Path:
    """The raw folder of a branch that may be made or completed.

    Raises:
        WrongUse: the id belongs to another dataset, or the dataset is no branch of this one.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    number = raw.dataset_id(target)
    others = [str(name) for name in find_candidate_datasets(number) if name != target]
    if others:
        raise WrongUse(f"the dataset id {number} belongs to {raw.name_some(others)}; choose another with --id")
    folder = raw.nnunet_folder(raw.RAW) / target
    if (folder / MARK).is_file():
        found = raw.load_json(folder / MARK).get("branch_of")
        if found != base:
            raise WrongUse(f"{folder} is a branch of {found}, not of {base}; choose another id with --id")
    elif folder.is_dir() and any(folder.iterdir()):
        raise WrongUse(f"{folder} exists and is no branch of {base}; choose another id with --id")
    return folder


def reserve(base: str, target: str) -> Path:
    """Makes the raw folder of a branch, which keeps its id from other datasets; gives the folder.

    Raises:
        WrongUse: see `refuse_taken`.
    """
    folder = refuse_taken(base, target)
    folder.mkdir(exist_ok=True)
    if not (folder / MARK).is_file():
        write_json(folder / MARK, {"branch_of": base})
    return folder


def branch(dataset: str | int, number: int, name: str | None = None, plans: str = "nnUNetPlans") -> str:
    """Makes a dataset that shares the files of another one, or completes it; gives its name.

    Shared are the labeled and unlabeled images, labels, dataset.json, fingerprint, plans, gt_segmentations and all that
    is preprocessed with these plans. The folds are those of the original, and after them one that trains and validates
    on all labeled cases: what `-f all` does in the original, where that would take in whatever is added later.

    Args:
        dataset: name or id of the original.
        number: id of the branch.
        name: of the branch after its id; None stands for that of the original with `_branch` at its end.
        plans: name of the plans file.

    Raises:
        WrongUse: the id or the name cannot be used.
        EnvironmentNotReady: the original is not planned and preprocessed.
        UserError: a file cannot be written.
    """
    base = raw.dataset_name(dataset)
    images, content = raw.dataset_folder(raw.RAW, base), raw.load_plans(base, plans)
    target = branch_name(number, f"{base.partition('_')[2]}_branch" if name is None else name)
    splits = labeled_splits(base, content[1])
    try:
        folder = reserve(base, target)
        for kind in SHARED_IMAGES:
            if (images / kind).is_dir():
                point_to(images / kind, folder / kind)
        _copy(images / "dataset.json", folder / "dataset.json")
        _share_preprocessed(base, target, content[0], splits)
    except OSError as error:
        raise UserError(
            f"{error.filename or target}: {cause_of(error)}; make sure that there is free space and that you "
            "may write there, then run again"
        ) from error
    return target


def _share_preprocessed(base: str, target: str, plans: dict[str, Any], splits: list[dict[str, list[str]]]) -> None:
    """Everything in place before dataset.json, without which no training starts."""
    source, folder = (raw.nnunet_folder(raw.PREPROCESSED) / name for name in (base, target))
    moved = {**copy.deepcopy(plans), "dataset_name": target}  # as nnUNetv2_move_plans_between_datasets does
    file = folder / f"{plans['plans_name']}.json"
    _refuse_other_plans(file, moved)
    folder.mkdir(exist_ok=True)
    for identifier in _data_identifiers(plans):
        for name in (identifier, f"{identifier}_unlabeled"):
            if (source / name).is_dir():
                share_files(source / name, folder / name)
        if (source / f"{identifier}_unlabeled.jsonl").is_file():
            _copy(source / f"{identifier}_unlabeled.jsonl", folder / f"{identifier}_unlabeled.jsonl")
    if not (source / "gt_segmentations").is_dir():
        raise EnvironmentNotReady(
            f"{source} is not preprocessed; run `nnUNetv2_plan_and_preprocess -d {raw.dataset_id(base)}` first"
        )
    share_files(source / "gt_segmentations", folder / "gt_segmentations")
    share(source / "dataset_fingerprint.json", folder / "dataset_fingerprint.json")
    if not (folder / SPLITS).is_file():
        write_json(folder / SPLITS, splits)
    write_json(file, moved)
    _copy(source / "dataset.json", folder / "dataset.json")


def _refuse_other_plans(file: Path, plans: dict[str, Any]) -> None:
    """The cases of a branch stay as they are when the original is planned anew; configurations may be added."""
    before = raw.load_json(file) if file.is_file() else {}
    changed = [key for key in before if key != "configurations" and before[key] != plans.get(key)]
    known = before.get("configurations", {})
    changed += [name for name in known if known[name] != plans["configurations"].get(name)]
    if changed:
        raise UserError(
            f"{file} was made from plans of the original that have changed since ({raw.name_some(changed)}); delete "
            "this branch and its results, or restore the plans"
        )


def _data_identifiers(plans: dict[str, Any]) -> list[str]:
    return sorted({c["data_identifier"] for c in plans["configurations"].values() if "data_identifier" in c})


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def labeled_splits(base: str, dataset_json: dict[str, Any]) -> list[dict[str, list[str]]]:
    """The folds of a branch before anything is added to it: those of the original, and one of all labeled cases.

    Where the original has no splits_final.json yet, its folds are those that nnU-Net will make. Where it is a branch
    itself, its pseudo-labeled cases are left out.
    """
    file = raw.nnunet_folder(raw.PREPROCESSED) / base / SPLITS
    labeled = raw.require_labeled_cases(base, dataset_json)
    own = set(labeled)
    folds = [
        {"train": [case for case in fold["train"] if case in own], "val": list(fold["val"])}
        for fold in folds_of(file, labeled)
    ]
    return [*folds, {"train": labeled, "val": labeled}]


def folds_of(file: str | os.PathLike[str], labeled: list[str]) -> list[dict[str, list[str]]]:
    """The folds in nnU-Net's splits_final.json, or those it will make: none of fewer than five cases."""
    if os.path.isfile(file):
        from batchgenerators.utilities.file_and_folder_operations import load_json

        return load_json(str(file))
    if len(labeled) < 5:
        return []
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    return generate_crossval_split(labeled, seed=12345, n_splits=5)
