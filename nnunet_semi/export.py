"""A trained model as a zip file that nnU-Net installs and predicts with where this plugin does not exist."""

from __future__ import annotations

import contextlib
import io
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_semi import raw
from nnunet_semi.errors import UserError, WrongUse
from nnunet_semi.stock import (
    find_trainer_class,
    load_checkpoint,
    network_weights,
    stock_checkpoint,
    stock_trainer_name,
)
from nnunet_semi.storage import atomic_path
from nnunet_semi.trained_model import NEEDED_FILES, TrainedModel, find_model

# as nnUNetv2_export_model_to_zip, without debug.json, which describes the machine of the training
OPTIONAL_FILES = ("dataset_fingerprint.json",)
OPTIONAL_FOLD_FILES = ("progress.png", "network_architecture.pdf", "validation/summary.json")
OPTIONAL_CROSSVALIDATION_FILES = ("summary.json", "postprocessing.pkl", "postprocessing.json")


def export(
    dataset: str | int,
    configuration: str,
    output: Path | str,
    trainer: str = "nnUNetTrainerCPS",
    plans: str = "nnUNetPlans",
    folds: Sequence[int | str] = (0,),
    checkpoint: str = "checkpoint_final.pth",
    overwrite: bool = False,
) -> Path:
    """Writes a trained model as a zip file for `nnUNetv2_install_pretrained_model_from_zip`, and checks it.

    The file holds the network to deploy as a model of stock nnU-Net, without optimizer, second network and random
    states. It installs as DATASET/nnUNetTrainer__PLANS__CONFIG and replaces a model of that name there. Before the
    file appears it is unpacked, loaded by nnU-Net's own predictor, and must give exactly the logits of the original
    checkpoints on a random patch, fold by fold.

    Args:
        folds: which folds to export; "all" is the fold of this name.
        overwrite: replace `output` if it exists.

    Returns:
        The path of the zip file.

    Raises:
        WrongUse: `output` does not end in .zip, or a name or fold cannot be one.
        EnvironmentNotReady: a folder, a fold, a checkpoint or the class of the trainer is missing.
        UserError: `output` exists, a checkpoint cannot be read or does not fit the plans, nnU-Net alone cannot build
            the network, or both models do not predict the same.
    """
    output = _free_output(Path(output), overwrite)
    model = find_model(dataset, configuration, trainer, plans, folds, checkpoint)
    scratch = tempfile.TemporaryDirectory(prefix=".nnunet_semi_export_", dir=output.parent)
    silence = contextlib.redirect_stdout(io.StringIO())  # nnU-Net prints while it searches and loads
    with silence, scratch as folder, atomic_path(output) as archive:
        first = load_checkpoint(model.checkpoint_file(model.folds[0]))
        trainer_class = find_trainer_class(first["trainer_name"])
        stock_trainer = stock_trainer_name(trainer_class)
        network = _build_network(trainer_class, model, first["init_args"]["configuration"])
        _load_weights(network, network_weights(first), model.checkpoint_file(model.folds[0]))
        _write_archive(archive, model, stock_trainer, network, Path(folder))
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        _check_same_prediction(network, model, Path(folder) / model.path_as(stock_trainer))
    return output


# --- what is there ---


def _free_output(output: Path, overwrite: bool) -> Path:
    if output.suffix != ".zip":
        raise WrongUse(f"got -o {output}; expected a name that ends in .zip")
    if not output.parent.is_dir():
        raise UserError(f"the folder {output.parent} of -o {output.name} does not exist; make it first")
    if output.is_dir() or (output.exists() and not overwrite):
        raise UserError(f"{output} exists; choose another name, or pass --overwrite to replace a file")
    return output


# --- the archive ---


def _write_archive(archive: Path, model: TrainedModel, stock_trainer: str, network: nn.Module, scratch: Path) -> None:
    """Writes the zip file; the names in it are made of what the user asked for, never of what a checkpoint says."""
    root = model.path_as(stock_trainer).as_posix()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for fold in model.folds:
            file = scratch / model.checkpoint
            torch.save(stock_checkpoint(load_checkpoint(model.checkpoint_file(fold)), stock_trainer, network), file)
            content.write(file, f"{root}/fold_{fold}/{model.checkpoint}")
        for name in _other_files(model):
            content.write(model.folder / name, f"{root}/{name}")


def _other_files(model: TrainedModel) -> Iterator[str]:
    """What is copied as it is, relative to the folder of the model."""
    yield from NEEDED_FILES
    crossvalidation = "crossval_results_folds_" + "_".join(map(str, model.folds))
    optional = [
        *OPTIONAL_FILES,
        *(f"fold_{fold}/{name}" for fold in model.folds for name in OPTIONAL_FOLD_FILES),
        *(f"{crossvalidation}/{name}" for name in OPTIONAL_CROSSVALIDATION_FILES),
    ]
    yield from (name for name in optional if (model.folder / name).is_file())


# --- the check ---


def _check_same_prediction(network: nn.Module, model: TrainedModel, installed: Path) -> None:
    """Compares the logits of the unpacked archive, loaded by stock nnU-Net, with those of the original checkpoints.

    Args:
        network: as the original trainer builds it.
    """
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(installed), model.folds, model.checkpoint)
    exported = getattr(predictor.network, "_orig_mod", predictor.network)  # compiled where nnUNet_compile is set
    channels = determine_num_input_channels(
        predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
    )
    shape = _probe_shape(predictor.configuration_manager)
    patch = torch.randn((1, channels, *shape), generator=torch.Generator().manual_seed(0))
    for fold, weights in zip(model.folds, predictor.list_of_parameters, strict=True):
        file = model.checkpoint_file(fold)
        expected = _original_logits(network, file, patch)
        exported.load_state_dict(weights)
        if not torch.equal(expected, _logits(exported, patch)):
            raise UserError(
                f"the exported model does not predict what {file} predicts, so that nothing was written; its trainer "
                f"{model.trainer} changes the network after building it, share the model together with that trainer"
            )


def _build_network(trainer_class: type[nnUNetTrainer], model: TrainedModel, configuration: str) -> nn.Module:
    plans_manager = PlansManager(raw.load_json(model.folder / "plans.json"))
    dataset_json = raw.load_json(model.folder / "dataset.json")
    if configuration not in plans_manager.available_configurations:
        raise UserError(
            f"{model.folder / 'plans.json'} has no configuration {configuration!r}, with which the checkpoint was "
            "trained; restore the plans of that training"
        )
    configuration_manager = plans_manager.get_configuration(configuration)
    return trainer_class.build_network_architecture(
        plans_manager,
        configuration_manager,
        determine_num_input_channels(plans_manager, configuration_manager, dataset_json),
        plans_manager.get_label_manager(dataset_json).num_segmentation_heads,
        enable_deep_supervision=False,
    )


def _probe_shape(configuration: ConfigurationManager) -> list[int]:
    """A small patch: two voxels wide where the network is coarsest, or the whole patch if that is not known."""
    strides = configuration.network_arch_init_kwargs.get("strides")
    if strides is None:
        return list(configuration.patch_size)
    return np.minimum(configuration.patch_size, 2 * np.prod(strides, axis=0)).tolist()


def _original_logits(network: nn.Module, file: Path, patch: torch.Tensor) -> torch.Tensor:
    _load_weights(network, network_weights(load_checkpoint(file)), file)
    logits = _logits(network, patch)
    if not logits.isfinite().all():
        raise UserError(f"the network in {file} predicts values that are not finite; train it again, it has diverged")
    return logits


def _load_weights(network: nn.Module, weights: dict[str, torch.Tensor], file: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file} does not fit plans.json and dataset.json of its model; restore them ({reason})"
        ) from error


@torch.inference_mode()
def _logits(network: nn.Module, patch: torch.Tensor) -> torch.Tensor:
    """The logits for one patch (1 × channels × shape)."""
    return network.eval()(patch)
