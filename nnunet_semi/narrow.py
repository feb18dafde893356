"""A narrower copy of an nnU-Net configuration, for laptops, demonstrations and tests."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_semi import raw
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.storage import write_json

NAME = re.compile(r"(?!.*__)[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class NarrowConfiguration:
    """What `add_narrow_configuration` did.

    Attributes:
        name: the new configuration, for `nnUNetv2_train DATASET NAME FOLD`.
        plans_file: the plans that hold it.
        features: its channels per stage, highest resolution first.
        added: False if the plans already held exactly this configuration and were left as they were.
    """

    name: str
    plans_file: Path
    features: list[int]
    added: bool


def narrow(
    dataset: str | int, configuration: str, width: int = 8, plans: str = "nnUNetPlans", name: str | None = None
) -> str:
    """Adds a narrower copy of a configuration to the plans and gives its name; see `add_narrow_configuration`."""
    return add_narrow_configuration(dataset, configuration, width, plans, name).name


def add_narrow_configuration(
    dataset: str | int, configuration: str, width: int = 8, plans: str = "nnUNetPlans", name: str | None = None
) -> NarrowConfiguration:
    """Adds to nnUNet_preprocessed/DATASET/PLANS.json a configuration that differs in the width of its network only.

    It uses the preprocessed data of the original, so nothing has to be preprocessed again. The cost of a training
    iteration falls about with the square of the width. A second call with the same arguments changes nothing.

    Args:
        width: channels of the first stage; nnU-Net's default networks have 32. Later stages shrink by the same factor.
        name: of the new configuration, CONFIGURATION_wWIDTH if not given.

    Raises:
        WrongUse: width below 1 or above the original, no such configuration, or a name that nnU-Net cannot use.
        EnvironmentNotReady: the plans are missing.
        UserError: the plans are old, the network has no list of channels, the configuration needs the predictions
            of an earlier cascade stage, or the plans hold another configuration of this name.
    """
    name = f"{configuration}_w{width}" if name is None else name
    if not NAME.fullmatch(name):
        raise WrongUse(
            f"got the name {name!r} for the new configuration; expected letters, digits, '_', '-' and '.', without "
            "'__', because nnU-Net makes a folder name of it; choose another with --name"
        )
    dataset = raw.dataset_name(dataset)
    content, _ = raw.load_plans(dataset, plans)
    plans_file = raw.nnunet_folder(raw.PREPROCESSED) / dataset / f"{plans}.json"
    entry = _narrow_entry(content, configuration, width, plans_file)
    present = content["configurations"].get(name)
    if present is not None and present != entry:
        raise UserError(
            f"{plans_file} already holds another configuration {name!r}; it was left as it is: choose a name that is "
            "free with --name"
        )
    if present is None:
        content["configurations"][name] = entry
        write_json(plans_file, content)
    features = entry["architecture"]["arch_kwargs"]["features_per_stage"]
    return NarrowConfiguration(name, plans_file, features, added=present is None)


def _narrow_entry(plans: dict[str, Any], configuration: str, width: int, plans_file: Path) -> dict[str, Any]:
    """What the plans will hold: `inherits_from`, the architecture, and where needed the end of a cascade.

    nnU-Net's inheritance replaces whole keys and does not look inside, so that the architecture is repeated as a
    whole with only its widths changed.
    """
    original = raw.resolve_configuration(plans, configuration)
    if original.get("previous_stage") is not None:
        raise UserError(
            f"the configuration {configuration!r} of {plans_file} refines the predictions of "
            f"{original['previous_stage']!r}, and nnU-Net ties these two to each other by name, so that a copy of one "
            "would find no predictions; narrow one that is trained on images alone, such as 3d_fullres or 3d_lowres"
        )
    architecture = copy.deepcopy(original["architecture"])
    widths = architecture["arch_kwargs"].get("features_per_stage")
    if not isinstance(widths, list) or not widths:
        raise UserError(
            f"the network of configuration {configuration!r} in {plans_file} ({architecture['network_class_name']}) "
            "has no list 'features_per_stage'; only networks such as PlainConvUNet and ResidualEncoderUNet can be "
            "narrowed, so plan the dataset with one of them"
        )
    architecture["arch_kwargs"]["features_per_stage"] = narrow_features(widths, width)
    entry = {"inherits_from": configuration, "architecture": architecture}
    if original.get("next_stage") is not None:
        entry["next_stage"] = None  # else the copy would predict for a cascade that knows the original only
    return entry


def narrow_features(features: list[int], width: int) -> list[int]:
    """Channels per stage with `width` in the first, all scaled by the same factor and rounded, none below 1.

    For nnU-Net's networks this is min(width · 2^stage, cap), with a cap that shrinks like the width.

    Raises:
        WrongUse: `width` is below 1 or above the first of `features`.
    """
    base = features[0]
    if not 1 <= width <= base:
        raise WrongUse(f"got width {width}; expected 1 to {base}, the width of the original network; change --width")
    return [max(1, round(feature * width / base)) for feature in features]
