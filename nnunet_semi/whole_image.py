"""A configuration whose patch holds the whole image, at the resolution that this takes; landmarks need the context."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_semi import raw
from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.narrow import NAME
from nnunet_semi.storage import write_json

SMALLEST_FEATURE_MAP = 4  # nnU-Net's own limit for an edge of the deepest feature maps
PER_STAGE = ("features_per_stage", "n_conv_per_stage", "n_blocks_per_stage")


@dataclass(frozen=True)
class WholeImage:
    """What `add_whole_image_configuration` did.

    Attributes:
        name: the new configuration, for `nnUNetv2_preprocess -c` and `nnUNetv2_train`.
        plans_file: the plans that hold it.
        spacing: its resolution in mm.
        patch_size: which holds the largest image of the dataset.
    """

    name: str
    plans_file: Path
    spacing: list[float]
    patch_size: list[int]


def add_whole_image_configuration(
    dataset: str | int,
    configuration: str,
    longest: int | None = None,
    plans: str = "nnUNetPlans",
    name: str | None = None,
) -> WholeImage:
    """Adds to nnUNet_preprocessed/DATASET/PLANS.json a configuration that sees every image whole, at a coarser spacing.

    Its images have to be preprocessed: `nnUNetv2_preprocess -d DATASET -c NAME`. A second call with the same arguments
    changes nothing.

    Args:
        configuration: to inherit from; its spacing is never refined.
        longest: voxels along the longest side of the largest image; if not given, as many as make the patch about as
            large as that of `configuration`, which fits into the memory that nnU-Net planned for.
        name: of the new configuration; CONFIGURATION_whole, or CONFIGURATION_wholeN, if not given.

    Raises:
        WrongUse: `longest` is below 32, no such configuration, or a name that nnU-Net cannot use.
        EnvironmentNotReady: plans or fingerprint are missing.
        UserError: the plans hold another configuration of this name.
    """
    if longest is not None and longest < 32:
        raise WrongUse(f"got {longest} voxels for the longest side; expected 32 or more; change --longest")
    name = f"{configuration}_whole{longest or ''}" if name is None else name
    if not NAME.fullmatch(name):
        raise WrongUse(f"got the name {name!r}; expected letters, digits, '_', '-' and '.', without '__'")
    dataset = raw.dataset_name(dataset)
    content, _ = raw.load_plans(dataset, plans)
    folder = raw.nnunet_folder(raw.PREPROCESSED) / dataset
    entry = _entry(content, configuration, largest_extent(folder, content, configuration), longest)
    entry["data_identifier"] = f"{content['plans_name']}_{name}"
    plans_file = folder / f"{plans}.json"
    present = content["configurations"].get(name)
    if present is not None and present != entry:
        raise UserError(f"{plans_file} already holds another configuration {name!r}; choose another name with --name")
    if present is None:
        content["configurations"][name] = entry
        write_json(plans_file, content)
    return WholeImage(name, plans_file, entry["spacing"], entry["patch_size"])


def largest_extent(folder: Path, plans: dict[str, Any], configuration: str) -> np.ndarray:
    """Along each axis of a patch, the extent in mm of the image that is the largest there, after nnU-Net's cropping.

    Raises:
        EnvironmentNotReady: the fingerprint is missing.
    """
    file = folder / "dataset_fingerprint.json"
    if not file.is_file():
        raise EnvironmentNotReady(f"{file} does not exist; run `nnUNetv2_extract_fingerprint` for this dataset first")
    fingerprint = raw.load_json(file)
    extents = np.array(fingerprint["shapes_after_crop"]) * np.array(fingerprint["spacings"])
    dim = len(raw.resolve_configuration(plans, configuration)["patch_size"])
    return extents[:, plans["transpose_forward"]].max(0)[3 - dim :]


def _entry(plans: dict[str, Any], configuration: str, extent: np.ndarray, longest: int | None) -> dict[str, Any]:
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    original = raw.resolve_configuration(plans, configuration)
    patch = original["patch_size"]
    coarse = extent.max() / longest if longest else (extent.prod() / np.prod(patch)) ** (1 / len(patch))
    spacing = np.maximum(coarse, original["spacing"])
    shape = np.ceil(np.round(extent / spacing, 3)).astype(int)
    _, strides, kernels, shape, _ = get_pool_and_conv_props(spacing, shape, SMALLEST_FEATURE_MAP, 999999)
    architecture = copy.deepcopy(original["architecture"])
    arguments = architecture["arch_kwargs"]
    stages = len(strides)
    for key in PER_STAGE:
        if isinstance(arguments.get(key), list):
            arguments[key] = _of_length(arguments[key], stages)
    if isinstance(arguments.get("n_conv_per_stage_decoder"), list):
        arguments["n_conv_per_stage_decoder"] = _of_length(arguments["n_conv_per_stage_decoder"], stages - 1)
    arguments.update(n_stages=stages, strides=[list(s) for s in strides], kernel_sizes=[list(k) for k in kernels])
    ends = {key: None for key in ("previous_stage", "next_stage") if original.get(key) is not None}
    return {
        "inherits_from": configuration,
        "spacing": [float(s) for s in spacing],
        "patch_size": [int(n) for n in shape],
        "median_image_size_in_voxels": [float(n) for n in extent / spacing],
        "architecture": architecture,
        **ends,
    }


def _of_length(values: list[int], length: int) -> list[int]:
    """Cut or continued with the last value."""
    return (values + values[-1:] * length)[:length]
