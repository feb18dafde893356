"""Models as short trainings of plugin trainers leave them in nnUNet_results, for the tests of the export."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN

from nnunet_semi.discovery import hook_folder
from nnunet_semi.errors import WrongUse
from nnunet_semi.export import export
from nnunet_semi.narrow import narrow
from nnunet_semi.raw import load_json
from small_dataset import environment, make_dataset, plan

DATASET, CONFIGURATION, CHECKPOINT = "Dataset001_Tiny", "2d_w4", "checkpoint_final.pth"
TOY_TRAINERS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN

class nnUNetTrainerToy(nnUNetTrainer): pass
class nnUNetTrainerToyBN(nnUNetTrainerBN): pass
class nnUNetTrainerToyOwn(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(*args, **kwargs):
        return nnUNetTrainer.build_network_architecture(*args, **kwargs)
"""


def new_trainer(root, name, base=nnUNetTrainer, fold=0):
    """A trainer as nnUNetv2_train makes it, with networks and optimizer, under any class name."""
    folder = root / "nnUNet_preprocessed" / DATASET
    plans = {**load_json(folder / "nnUNetPlans.json"), "continue_training": False}
    dataset_json = load_json(folder / "dataset.json")
    trainer = type(name, (base,), {})(plans, CONFIGURATION, fold, dataset_json, torch.device("cpu"))
    trainer.initialize()
    return trainer


def step(trainer):
    """One step of the optimizer, so that it has a momentum and the weights are no longer those of the start."""
    outputs = trainer.network(torch.randn(2, 1, 32, 32))
    sum(output.square().mean() for output in outputs).backward()
    trainer.optimizer.step()


def train(root, name, base=nnUNetTrainer, fold=0):
    """Leaves in nnUNet_results what a short training of a plugin trainer leaves there."""
    torch.manual_seed((0, 1, "all").index(fold))
    trainer = new_trainer(root, name, base, fold)
    step(trainer)
    trainer.inference_allowed_mirroring_axes = (0, 1)  # as on_train_start sets it
    for key in trainer.logger.local_logger.my_fantastic_logging:
        trainer.logger.log(key, np.float32(0.5), 0)
    file = Path(trainer.output_folder) / CHECKPOINT
    trainer.save_checkpoint(str(file))
    extra = {"network2": trainer.network.state_dict(), "seed": 3, "object": WrongUse("an object of the plugin")}
    edit(file, lambda checkpoint: checkpoint.update(nnunet_semi=extra))
    edit(file, lambda checkpoint: checkpoint["logging"].update(semi=[np.float32(1)]))
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        source = name.replace("plans", "nnUNetPlans")
        shutil.copy(root / "nnUNet_preprocessed" / DATASET / source, file.parents[1] / name)
    (file.parent / "validation").mkdir()
    for name in ("progress.png", "debug.json", "validation/summary.json", "validation/case.png"):
        (file.parent / name).write_text(name)


def edit(file, change):
    """Applies `change` to the content of a checkpoint."""
    checkpoint = torch.load(file, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, file)


def make_models(root):
    """A planned 2D dataset and four trained models, one of them with three folds."""
    with mock.patch.dict(os.environ, environment(root)):
        make_dataset(root)
        plan(1)
        narrow(1, "2d", width=4)
        for fold in (0, 1, "all"):
            train(root, "nnUNetTrainerToy", fold=fold)
        train(root, "nnUNetTrainerToyBN", nnUNetTrainerBN)
        train(root, "nnUNetTrainerToyOwn")
        train(root, "nnUNetTrainer_2epochs_seed1")
    return root


def copy_models(root, folder, monkeypatch):
    """A copy of the models, which a test may spoil, on a machine that knows the trainers."""
    for name, value in environment(root).items():
        monkeypatch.setenv(name, value)
    shutil.copytree(root / "nnUNet_results", folder / "results")
    (folder / "trainers").mkdir()
    (folder / "trainers" / "toy_trainers.py").write_text(TOY_TRAINERS)
    monkeypatch.setenv("nnUNet_results", str(folder / "results"))
    monkeypatch.setenv("nnUNet_extTrainer", f"{folder / 'trainers'}{os.pathsep}{hook_folder()}")
    return folder / "results" / DATASET


def export_toy(output, trainer="nnUNetTrainerToy", **options):
    return export(1, CONFIGURATION, output, trainer=trainer, **options)


def toy_checkpoint(results, trainer="nnUNetTrainerToy", fold=0):
    return results / f"{trainer}__nnUNetPlans__{CONFIGURATION}" / f"fold_{fold}" / CHECKPOINT


def install(archive, folder, trainer="nnUNetTrainer"):
    """Unpacks the zip file as nnU-Net does, and gives the folder of the model in it."""
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    return folder / DATASET / f"{trainer}__nnUNetPlans__{CONFIGURATION}"


def load_predictor(model, folds=(0,)):
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(model), folds, CHECKPOINT)
    return predictor
