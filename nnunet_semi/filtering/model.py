"""The trained model whose predictions are scored: its files, and the networks that an estimator compares."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_semi.errors import EnvironmentNotReady, UserError, WrongUse
from nnunet_semi.kept_checkpoints import kept_name
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY, PluginTrainer
from nnunet_semi.stock import find_trainer_class, load_checkpoint, network_weights
from nnunet_semi.trained_model import TrainedModel

FINAL = "checkpoint_final.pth"
ESTIMATORS = ("checkpoints", "networks", "entropy", "folds", "mirrors")


class View(NamedTuple):
    """One way to predict a case: with these weights (their logits are averaged), mirrored along these axes."""

    weights: list[dict[str, Tensor]]
    axes: tuple[int, ...] = ()


class Views(NamedTuple):
    """What an estimator compares; without a reference of its own, it is the mean of the members."""

    members: list[View]
    reference: View | None


def files(model: TrainedModel, name: str) -> list[Path]:
    """The checkpoint of this name of every fold."""
    return [replace(model, checkpoint=name).checkpoint_file(fold) for fold in model.folds]


def kept(model: TrainedModel) -> list[str]:
    """The names of the checkpoints of mid-training that the trainer of a model keeps."""
    with quiet():
        trainer = find_trainer_class(model.trainer)
    return [kept_name(fraction) for fraction in getattr(trainer, "keep_checkpoints", PluginTrainer.keep_checkpoints)]


def needed_files(model: TrainedModel, by: str) -> list[Path]:
    """The checkpoints that an estimator reads.

    Raises:
        WrongUse: the estimator compares folds, and there is one.
        EnvironmentNotReady: a kept checkpoint is missing.
    """
    if by == "folds" and len(model.folds) < 2:
        raise WrongUse(f"got the fold {model.folds[0]}; --by folds compares two or more, such as -f 0 1 2 3 4")
    if by != "checkpoints":
        return files(model, FINAL)
    names = kept(model)
    if not names:
        raise UserError(
            f"the trainer {model.trainer} keeps no checkpoints, its keep_checkpoints is empty; score by another "
            "estimator"
        )
    wanted = [file for name in names for file in files(model, name)]
    for file in wanted:
        if not file.is_file():
            raise EnvironmentNotReady(
                f"{file} does not exist, which --by checkpoints compares with {FINAL}; train with "
                "nnUNetTrainerKeepCheckpoints or another trainer of this project, which keep it"
            )
    return [*wanted, *files(model, FINAL)]


def load_views(model: TrainedModel, by: str, mirroring_axes: Sequence[int] | None) -> Views:
    """The networks of an estimator, in memory.

    Args:
        by: one of `ESTIMATORS`.
        mirroring_axes: spatial axes along which the trainer allows mirroring.

    Raises:
        UserError: the checkpoints do not hold what the estimator compares.
    """
    finals = [load_checkpoint(file) for file in files(model, FINAL)]
    final = View([network_weights(checkpoint) for checkpoint in finals])
    if by == "checkpoints":
        return Views([_kept_view(model, name, finals) for name in kept(model)], final)
    if by == "networks":
        return Views([View([_second_network(model, checkpoint) for checkpoint in finals])], final)
    if by == "folds":
        return Views([View([weights]) for weights in final.weights], None)
    if by == "mirrors":
        if not mirroring_axes:
            raise UserError(
                f"{model.folder} was trained without mirroring, so that --by mirrors has nothing to compare"
            )
        sizes = range(len(mirroring_axes) + 1)
        return Views(
            [View(final.weights, axes) for axes in chain(*(combinations(mirroring_axes, n) for n in sizes))], None
        )
    return Views([], final)


def _kept_view(model: TrainedModel, name: str, finals: Sequence[Mapping[str, Any]]) -> View:
    weights = []
    for file, final in zip(files(model, name), finals, strict=True):
        kept = load_checkpoint(file)
        seeds = [checkpoint.get(CHECKPOINT_KEY, {}).get("seed") for checkpoint in (kept, final)]
        if seeds[0] != seeds[1]:
            raise UserError(
                f"{file} is left from another training than {FINAL} beside it (seed {seeds[0]} and {seeds[1]}); train "
                "again, or score by another estimator"
            )
        weights.append(network_weights(kept))
    return View(weights)


def _second_network(model: TrainedModel, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    state = checkpoint.get(CHECKPOINT_KEY, {}).get("network_2")
    if state is None:
        raise UserError(
            f"{FINAL} of {model.trainer} holds one network, and --by networks compares the two of a CPS training; "
            "choose a trainer such as nnUNetTrainerCPS with -tr, or another estimator"
        )
    return network_weights({"network_weights": state})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what nnU-Net prints while it searches and loads away from the results."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def make_predictor(model: TrainedModel, device: torch.device, mirroring: bool) -> nnUNetPredictor:
    """nnU-Net's own predictor with this model."""
    with quiet():
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=device, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model.folder), model.folds, FINAL)
    return predictor
