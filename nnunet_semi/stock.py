"""A checkpoint of any trainer as stock nnU-Net would have written it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import nn

from nnunet_semi.discovery import find_trainer
from nnunet_semi.discovery.suggestions import hint
from nnunet_semi.discovery.variants import NotAVariant, parse
from nnunet_semi.errors import EnvironmentNotReady, UserError, cause_of

INIT_ARGUMENTS = ("plans", "configuration", "fold", "dataset_json", "device")  # of nnUNetTrainer.__init__
NEEDED_KEYS = ("network_weights", "init_args", "trainer_name")


def load_checkpoint(file: Path) -> dict[str, Any]:
    """The content of the user's own checkpoint, which may hold any object, on the CPU.

    Raises:
        UserError: the file cannot be read or is no checkpoint of nnU-Net.
    """
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:
        raise UserError(
            f"{file} cannot be read as a checkpoint ({cause_of(error)}); restore it or train again"
        ) from error
    missing = [key for key in NEEDED_KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}; expected a checkpoint that an nnU-Net trainer wrote")
    return checkpoint


def find_trainer_class(name: str) -> type[nnUNetTrainer]:
    """The class by nnU-Net's own look-up, which knows the user's folders, or else by ours.

    Raises:
        EnvironmentNotReady: neither knows it.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # both say what may have been meant
        with contextlib.suppress(RuntimeError):
            return recursive_find_trainer_class_by_name(name)
        with contextlib.suppress(AttributeError):
            return find_trainer(name)
    base = name
    with contextlib.suppress(NotAVariant):
        base = parse(name)[0][0]  # endings would outweigh what was mistyped
    raise EnvironmentNotReady(
        f"the trainer {name} is not found; {hint(base)} One of your own is found through the environment variable "
        "nnUNet_extTrainer, which names the folder of its file"
    )


def stock_trainer_name(trainer_class: type[nnUNetTrainer]) -> str:
    """The nnU-Net trainer that builds the same network: the class that defines `build_network_architecture`.

    Raises:
        UserError: that class is not nnU-Net's own.
    """
    definer = next(ancestor for ancestor in trainer_class.__mro__ if "build_network_architecture" in vars(ancestor))
    if definer.__module__.split(".")[0] != "nnunetv2":
        raise UserError(
            f"the trainer {trainer_class.__name__} builds a network of its own (build_network_architecture of class "
            f"{definer.__name__}), which nnU-Net alone cannot build; share its code together with the model, which "
            "`nnUNetv2_export_model_to_zip` writes as it is"
        )
    return definer.__name__


def stock_checkpoint(checkpoint: dict[str, Any], trainer_name: str, network: nn.Module) -> dict[str, Any]:
    """The checkpoint with nnU-Net's keys and no others, as `trainer_name`, with an optimizer that has not stepped yet.

    Everything is made of plain types and tensors, so that `torch.load(…, weights_only=True)` reads it. The optimizer
    is there because `nnUNetTrainer.load_checkpoint` insists on one.

    Args:
        network: as `trainer_name` builds it, for the optimizer's list of parameters.

    Raises:
        UserError: an entry is of a type that another machine may not know.
    """
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    logged = LocalLogger().my_fantastic_logging
    return {
        "network_weights": network_weights(checkpoint),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {key: _plain(value) for key, value in checkpoint.get("logging", {}).items() if key in logged},
        "_best_ema": _plain(checkpoint.get("_best_ema")),
        "current_epoch": _plain(checkpoint.get("current_epoch", 0)),
        "init_args": {key: _plain(value) for key, value in checkpoint["init_args"].items() if key in INIT_ARGUMENTS},
        "trainer_name": trainer_name,
        "inference_allowed_mirroring_axes": _plain(checkpoint.get("inference_allowed_mirroring_axes")),
    }


def network_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights under the names of the bare network, without what torch.compile puts in front."""
    return {name.replace("_orig_mod.", ""): value for name, value in checkpoint["network_weights"].items()}


def _plain(value: Any) -> Any:
    """`value` with numpy's numbers and arrays as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if value is None or type(value) in (bool, int, float, str, torch.device):
        return value
    raise UserError(
        f"the checkpoint holds a {type(value).__module__}.{type(value).__name__} where nnU-Net writes numbers and "
        "text, and another machine may not know it; check what the trainer logs"
    )
