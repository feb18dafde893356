"""From selected unlabeled cases to training cases: `nnunet_semi pseudo_images` and `nnunet_semi pseudo_cases`.

Between the two stands the prediction, by nnU-Net's own command or whatever else makes label maps:

    imagesPs/   links to the selected images of imagesUn
    labelsPs/   a label map for each, under nnU-Net's names

nnU-Net looks into neither of these folders. So pseudo-labeled cases enter no fingerprint, no gt_segmentations and no
split that it makes; they are added to the training side of the folds, and to nothing else.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semi import raw
from nnunet_semi.branches import MARK
from nnunet_semi.errors import EnvironmentNotReady, UserError
from nnunet_semi.pool import for_each
from nnunet_semi.selftraining.branch import SPLITS, folds_of
from nnunet_semi.selftraining.links import point_to
from nnunet_semi.storage import write_json
from nnunet_semi.unlabeled.selection import SELECTION, selected_cases

IMAGES, LABELS = "imagesPs", "labelsPs"


@dataclass(frozen=True)
class PseudoSummary:
    """What `pseudo_cases` did.

    Attributes:
        folder: the preprocessed training cases.
        cases: the pseudo-labeled ones among them, sorted.
        made: how many of them were made in this run.
        folds: in the training side of how many folds they are.
    """

    folder: Path
    cases: list[str]
    made: int
    folds: int

    def __str__(self) -> str:
        cases = f"{len(self.cases)} pseudo-labeled cases ({self.made} made)"
        return f"{self.folder}: {cases}, to train on in {self.folds} folds"


# --- the images ---


def pseudo_images(dataset: str | int) -> Path:
    """Makes imagesPs, links to the images that unlabeled_final.json selects; gives the folder.

    It appears whole, and replaces what an earlier selection left.

    Raises:
        WrongUse, EnvironmentNotReady: the dataset is no branch, or nothing was selected in it.
        UserError: a selected case is not in imagesUn.
    """
    name, folder = _branch_folder(dataset)
    dataset_json = raw.load_json(folder / "dataset.json")
    path = raw.dataset_folder(raw.PREPROCESSED, name) / SELECTION
    selected = selected_cases(path)
    if selected is None:
        number = raw.dataset_id(name)
        raise EnvironmentNotReady(f"{path} does not exist; run `nnunet_semi select -d {number}` first")
    cases = raw.unlabeled_cases(folder, dataset_json)
    unknown = [case for case in selected if case not in cases]
    if unknown:
        raise UserError(
            f"{path} selects {raw.name_some(unknown)}, not in {folder / 'imagesUn'}; put the images back, or run "
            f"`nnunet_semi select -d {raw.dataset_id(name)} --overwrite` with the same table and rules"
        )
    files = [Path(file) for case in selected for file in _with_spacing(case, cases[case])]
    target = folder / IMAGES
    if _names(target) != {file.name for file in files}:
        _replace_by_links(target, files)
    return target


def _with_spacing(case: str, files: list[str]) -> list[str]:
    """The files of a case, and of .tif images CASE.json, from which nnU-Net reads the spacing."""
    beside = Path(files[0]).with_name(f"{case}.json")
    return [*files, str(beside)] if beside.is_file() else files


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _replace_by_links(target: Path, files: list[Path]) -> None:
    for left in target.parent.glob(f".{target.name}_*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    grown = Path(tempfile.mkdtemp(prefix=f".{target.name}_", dir=target.parent))
    grown.chmod(0o755)  # mkdtemp's are for their maker alone
    for file in files:
        point_to(file, grown / file.name)
    if target.exists():
        os.rename(target, Path(tempfile.mkdtemp(prefix=f".{target.name}_", dir=target.parent)) / "old")
    os.rename(grown, target)
    for left in target.parent.glob(f".{target.name}_*"):
        shutil.rmtree(left, ignore_errors=True)


# --- the cases ---


def pseudo_cases(
    dataset: str | int,
    configuration: str,
    plans: str = "nnUNetPlans",
    num_processes: int | None = None,
    progress: bool = True,
) -> PseudoSummary:
    """Makes training cases of imagesPs and labelsPs, and puts them into the training side of every fold.

    The label maps go through nnU-Net's own preprocessing; the images are those that `nnunet_semi preprocess` made, as
    far as they are there. A second run makes only those whose label map is newer, and removes those of cases that are
    in imagesPs no more.

    Args:
        dataset: name or id of a branch.
        configuration: for which it is done.
        plans: name of the plans file.
        num_processes: see `pool.number_of_processes`.
        progress: whether to show a bar.

    Raises:
        WrongUse, EnvironmentNotReady: the dataset is no branch, or lacks plans, images or preprocessed cases.
        UserError: a label map is missing, broken, or does not fit its image.
    """
    from nnunet_semi.selftraining.segmentation import PseudoRecipe

    name, folder = _branch_folder(dataset)
    content, dataset_json = raw.load_plans(name, plans)
    identifier = raw.resolve_configuration(content, configuration)["data_identifier"]
    preprocessed = raw.dataset_folder(raw.PREPROCESSED, name)
    cases = _pseudo_labeled(folder, dataset_json, name)
    target = preprocessed / identifier
    if not target.is_dir():
        raise EnvironmentNotReady(
            f"{target} does not exist; preprocess the original of this branch with `nnUNetv2_preprocess`, then branch "
            "it again"
        )
    labeled = raw.require_labeled_cases(name, dataset_json)
    _forget_others(target, {*labeled, *cases})
    outdated = [case for case in cases.values() if not _is_done(target, case)]
    scratch = Path(tempfile.mkdtemp(prefix=f".{identifier}_pseudo_", dir=preprocessed))
    try:
        recipe = PseudoRecipe(
            content, configuration, dataset_json, preprocessed / f"{identifier}_unlabeled", target, scratch
        )
        for _ in for_each(recipe, outdated, num_processes, "pseudo-labeled cases", progress):
            pass
    finally:
        for left in preprocessed.glob(f".{identifier}_pseudo_*"):  # also by runs that were killed
            shutil.rmtree(left, ignore_errors=True)
    folds = _train_on(preprocessed / SPLITS, labeled, sorted(cases))
    return PseudoSummary(target, sorted(cases), len(outdated), folds)


def _branch_folder(dataset: str | int) -> tuple[str, Path]:
    """The name and the raw folder of a branch; no other dataset is changed here."""
    name = raw.dataset_name(dataset)
    folder = raw.dataset_folder(raw.RAW, name)
    if not (folder / MARK).is_file():
        raise EnvironmentNotReady(
            f"{folder} is no branch, and pseudo-labeled cases are not mixed into an original; make a branch with "
            f"`nnunet_semi branch -d {raw.dataset_id(name)} --id N` and take that"
        )
    return name, folder


def _pseudo_labeled(folder: Path, dataset_json: dict[str, Any], name: str) -> dict[str, Any]:
    """Case id → images and label of the cases in imagesPs."""
    from nnunet_semi.selftraining.segmentation import PseudoCase

    ending = dataset_json["file_ending"]
    found: dict[str, list[str]] = {}
    for file in sorted(_names(folder / IMAGES)):
        match = raw.CHANNEL.fullmatch(file.removesuffix(ending)) if file.endswith(ending) else None
        if match is not None:
            found.setdefault(match["case"], []).append(str(folder / IMAGES / file))
    if not found:
        number = raw.dataset_id(name)
        raise EnvironmentNotReady(
            f"{folder / IMAGES} holds no images; run `nnunet_semi pseudo_images -d {number}` first"
        )
    missing = [case for case in found if not (folder / LABELS / (case + ending)).is_file()]
    if missing:
        raise EnvironmentNotReady(
            f"{folder / LABELS} lacks the label maps of {len(missing)} of {len(found)} cases "
            f"({raw.name_some(missing)}); make them with nnUNetv2_predict -i {folder / IMAGES} -o {folder / LABELS}"
        )
    return {
        case: PseudoCase(case, tuple(images), str(folder / LABELS / (case + ending))) for case, images in found.items()
    }


def _is_done(folder: Path, case: Any) -> bool:
    seg = folder / f"{case.name}_seg.b2nd"
    if not all((folder / (case.name + ending)).is_file() for ending in (".pkl", "_seg.b2nd", ".b2nd")):
        return False
    return seg.stat().st_mtime_ns > os.stat(case.label).st_mtime_ns


def _forget_others(folder: Path, known: set[str]) -> None:
    """Removes the cases that an earlier call has added and that are pseudo-labeled no more."""
    for file in folder.glob("*.pkl"):
        if file.stem not in known:
            for ending in (".b2nd", "_seg.b2nd", ".pkl"):
                (folder / (file.stem + ending)).unlink(missing_ok=True)


def _train_on(file: Path, labeled: list[str], pseudo: list[str]) -> int:
    """Puts the pseudo-labeled cases, and none that were there before, into the training side of every fold."""
    own = set(labeled)
    folds = [
        {"train": [*(case for case in fold["train"] if case in own), *pseudo], "val": list(fold["val"])}
        for fold in folds_of(file, labeled)
    ]
    write_json(file, folds)
    return len(folds)
