"""nnU-Net's folders, plans and raw unlabeled images; whatever is wrong with them is told in one sentence."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse, cause_of

FOLDERS = RAW, PREPROCESSED, RESULTS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
PLANNERS = {  # which planner writes which plans, for the command that is suggested where they are missing
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
PLANS_KEYS = ("configurations", "image_reader_writer", "transpose_forward", "plans_name", "dataset_name")
CONFIGURATION_KEYS = (
    "architecture",
    "data_identifier",
    "preprocessor_name",
    "batch_size",
    "patch_size",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def name_some(names: Iterable[str], most: int = 3) -> str:
    """The first names and how many more there are: "a, b, c and 4 more"."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def nnunet_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's environment variables (nnUNet_raw, …) names.

    Raises:
        EnvironmentNotReady: the variable is missing, quoted by accident, or names no folder.
    """
    value = os.environ.get(variable, "")
    if not value:
        raise EnvironmentNotReady(
            f"the environment variable {variable} is not set; `nnunet_semi init DIR` makes nnU-Net's three folders and "
            "prints the lines that set it"
        )
    if value[0] in "\"'" or value[-1] in "\"'":
        raise EnvironmentNotReady(
            f"the environment variable {variable} contains the quotation marks themselves ({value}); set it again "
            "without them"
        )
    if not os.path.isdir(value):
        hint = "; ~ is not expanded here, write the whole path" if value.startswith("~") else ""
        raise EnvironmentNotReady(
            f"the environment variable {variable} is {value!r}, which is not a folder; make that folder or set the "
            f"variable to the right one{hint}"
        )
    return Path(value)


def dataset_name(dataset: str | int) -> str:
    """The full name, such as Dataset007_Heart, of a dataset given by name or by id (7, "7" or "007").

    Raises:
        WrongUse: neither a name nor a number.
        EnvironmentNotReady: no dataset of this name or id, or several of this id, in nnU-Net's folders.
    """
    from nnunetv2.utilities import dataset_name_id_conversion as nnunet  # numpy: not at import time

    try:
        number = None if str(dataset).startswith("Dataset") else int(dataset)
    except ValueError:
        raise WrongUse(
            f"got dataset {dataset!r}; expected an id such as 7 or a name such as Dataset007_Heart"
        ) from None
    if number is None:
        name, folders = str(dataset), [variable for variable in FOLDERS if os.environ.get(variable)]
        if not any(os.path.isdir(os.path.join(os.environ[variable], name)) for variable in folders):
            dataset_folder(folders[0] if folders else RAW, name)  # says what is wrong
        return name
    found = [str(name) for name in nnunet.find_candidate_datasets(number)]
    if len(found) > 1:
        raise EnvironmentNotReady(
            f"dataset id {number} is ambiguous: nnU-Net's folders hold {', '.join(found)}; rename or move all but "
            "one, or give the whole name"
        )
    if not found:
        folders = [name for name in (RAW, PREPROCESSED) if os.environ.get(name)]
        places = ", ".join(f"{name}={os.environ[name]}" for name in folders) or "none of nnU-Net's folders is set"
        raise EnvironmentNotReady(
            f"there is no dataset with id {number} ({places}); check the id, or set nnU-Net's folders to where "
            f"Dataset{number:03d}_… is"
        )
    return found[0]


def dataset_id(name: str) -> int:
    """The number in a dataset name, 7 for Dataset007_Heart: what nnU-Net's -d takes."""
    digits = re.match(r"Dataset(\d+)", name)
    if digits is None:
        raise WrongUse(f"got dataset name {name!r}; expected a name such as Dataset007_Heart")
    return int(digits.group(1))


def dataset_folder(variable: str, name: str) -> Path:
    """The folder of a dataset inside the folder that `variable` names.

    Raises:
        EnvironmentNotReady: it is not there.
    """
    folder = nnunet_folder(variable) / name
    if not folder.is_dir():
        near = difflib.get_close_matches(name, os.listdir(folder.parent), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise EnvironmentNotReady(f"{folder} does not exist ({variable} is {folder.parent}){hint}")
    return folder


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that exists.

    Raises:
        UserError: the file holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({cause_of(error)}); restore it or make it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a JSON object; restore it or make it again")
    return content


def load_plans(name: str, plans: str = "nnUNetPlans") -> tuple[dict[str, Any], dict[str, Any]]:
    """Plans and dataset.json of a planned dataset, both from nnUNet_preprocessed, as nnU-Net's training reads them.

    Raises:
        EnvironmentNotReady: one of them is missing; the sentence says which command makes it.
    """
    folder = nnunet_folder(PREPROCESSED) / name
    for file in (f"{plans}.json", "dataset.json"):
        if not (folder / file).is_file():
            others = sorted(path.stem for path in folder.glob("*[pP]lans*.json") if path.name != file)
            hint = f" (there is {', '.join(others)}: choose with -p)" if others and file != "dataset.json" else ""
            raise EnvironmentNotReady(f"{folder / file} does not exist{hint}; {_run_planning(name, plans)}")
    return load_json(folder / f"{plans}.json"), load_json(folder / "dataset.json")


def _run_planning(name: str, plans: str) -> str:
    planner = PLANNERS.get(plans, "PLANNER")
    option = "" if planner == "ExperimentPlanner" else f" -pl {planner}"
    return f"run `nnUNetv2_plan_and_preprocess -d {dataset_id(name)}{option}` first"


def resolve_configuration(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration of the plans together with what it inherits.

    Raises:
        WrongUse: the plans have no configuration of this name.
        UserError: the plans were made by an older nnU-Net, or inherit from what is not there.
    """
    available = plans.get("configurations", {})
    resolved: dict[str, Any] = {}
    visited: list[str] = []
    name: str | None = configuration
    while name is not None:
        if name not in available or name in visited:
            raise _no_configuration(plans, configuration, name, visited)
        visited.append(name)
        resolved = {**available[name], **resolved}
        name = available[name].get("inherits_from")
    missing = [key for key in PLANS_KEYS if key not in plans]
    missing += [key for key in CONFIGURATION_KEYS if key not in resolved]
    if missing:
        raise UserError(
            f"the configuration {configuration} of {_plans_label(plans)} lacks {name_some(missing)}: it was planned by "
            "an older nnU-Net; run `nnUNetv2_plan_experiment` again for this dataset"
        )
    return resolved


def _no_configuration(plans: dict[str, Any], configuration: str, name: str, visited: list[str]) -> UserError:
    label = _plans_label(plans)
    if visited:
        reason = "inherits from itself" if name in visited else f"inherits from {name}, which does not exist"
        return UserError(f"the configuration {configuration} of {label} {reason}; correct `inherits_from` in that file")
    available = list(plans.get("configurations", {}))
    near = difflib.get_close_matches(name, available, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return WrongUse(f"{label} has no configuration {name!r}; it has {', '.join(available) or 'none'}{hint}")


def _plans_label(plans: dict[str, Any]) -> str:
    file = f"{plans.get('plans_name', 'nnUNetPlans')}.json"
    return os.path.join(os.environ.get(PREPROCESSED, ""), plans.get("dataset_name", ""), file)


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """The names of the input channels in their order.

    Raises:
        UserError: dataset.json has no channel names.
    """
    channels = dataset_json.get("channel_names", dataset_json.get("modality"))
    if not channels or "file_ending" not in dataset_json:
        missing = "file_ending" if channels else "channel_names"
        raise UserError(f"dataset.json has no {missing!r}; add it to the one in nnUNet_raw and plan the dataset again")
    return [str(name) for name in channels.values()]


def labeled_cases(folder: Path, dataset_json: dict[str, Any]) -> set[str]:
    """The ids of the labeled cases, by the rule of nnU-Net: those dataset.json lists, or else those in imagesTr."""
    if "dataset" in dataset_json:
        return set(dataset_json["dataset"])
    ending = dataset_json["file_ending"]
    if not (folder / "imagesTr").is_dir():
        return set()
    return {name[: -len(ending) - 5] for name in os.listdir(folder / "imagesTr") if name.endswith(ending)}


def require_labeled_cases(name: str, dataset_json: dict[str, Any]) -> list[str]:
    """The labeled cases of a dataset by name, sorted.

    Raises:
        EnvironmentNotReady: there are none; where nnU-Net's preprocessed data is used without the raw one, they are
            not known.
    """
    folder = dataset_folder(RAW, name)
    labeled = sorted(labeled_cases(folder, dataset_json))
    if not labeled:
        raise EnvironmentNotReady(
            f"{folder / 'imagesTr'} holds no labeled case; self-training has to tell them from pseudo-labeled ones, so "
            "bring the labeled images there (their names are enough)"
        )
    return labeled


def unlabeled_cases(
    folder: Path, dataset_json: dict[str, Any], log: Callable[[str], None] = lambda sentence: None
) -> dict[str, list[str]]:
    """The files of every unlabeled case of a raw dataset, in the order of their channel numbers.

    Only names are looked at, once for the whole folder; hidden files are passed over.

    Args:
        folder: the raw dataset; its `imagesUn` is searched.
        log: is told in a sentence about files that are left out because of their ending.

    Returns:
        Case id → paths, sorted by case id.

    Raises:
        EnvironmentNotReady: there is no imagesUn.
        UserError: it is empty, files are misnamed, or a case is labeled as well.
    """
    images = folder / "imagesUn"
    if not images.is_dir():
        raise EnvironmentNotReady(
            f"{images} does not exist; put the unlabeled images there, named CASE_0000{dataset_json['file_ending']} as "
            "in imagesTr"
        )
    with os.scandir(images) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and not _is_folder(entry))
    cases = _by_case(images, names, dataset_json["file_ending"], log)
    both = sorted(cases.keys() & labeled_cases(folder, dataset_json))
    if both:
        raise UserError(
            f"{name_some(both)} is labeled (imagesTr) and unlabeled ({images}) at once; where it is the same image, "
            "delete it from imagesUn, where it is another one, rename it there, for example with the prefix un_"
        )
    return cases


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _by_case(images: Path, names: list[str], ending: str, log: Callable[[str], None]) -> dict[str, list[str]]:
    if not names:
        raise UserError(f"{images} is empty; put the unlabeled images there, named CASE_0000{ending} as in imagesTr")
    right = [name for name in names if name.endswith(ending)]
    others = [name for name in names if not name.endswith(ending)]
    if not right:
        raise UserError(
            f"no file in {images} ends in {ending}, as dataset.json says ({name_some(others)}); convert the images to "
            "the format of imagesTr"
        )
    cases: dict[str, list[str]] = defaultdict(list)
    misnamed = []
    for name in right:
        match = CHANNEL.fullmatch(name[: -len(ending)])
        if match is None:
            misnamed.append(name)
        else:
            cases[match["case"]].append(os.path.join(images, name))
    if misnamed:
        raise UserError(
            f"{name_some(misnamed)} in {images} has no channel number; expected CASE_0000{ending} for channel 0 as in "
            f"imagesTr; rename it, here to {misnamed[0][: -len(ending)]}_0000{ending}"
        )
    reserved = [case for case in cases if case.endswith("_seg")]
    if reserved:
        raise UserError(f"{name_some(reserved)} in {images} ends in _seg, which nnU-Net keeps for itself; rename it")
    others = [name for name in others if name.removesuffix(".json") not in cases]  # the spacing of a .tif
    if others:
        log(f"left out, because not ending in {ending}: {len(others)} files of {images}: {name_some(others)}")
    return dict(sorted(cases.items()))
