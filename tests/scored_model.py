"""Models as trainings leave them in nnUNet_results, made within a second: networks of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS
from tiny_trainer import make_trainer


def make_model(
    plans_file: Path, cls: type = nnUNetTrainerCPS, folds: tuple[int | str, ...] = (0,), **attributes: Any
) -> Path:
    """Writes a model with its kept checkpoints, whose networks differ a little; gives its folder."""
    for number, fold in enumerate(folds):
        trainer = make_trainer(cls, plans_file, fold=fold, **{"seed": number, **attributes})
        trainer.initialize()
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # sets the mirroring of prediction
        generator = torch.Generator().manual_seed(number)
        for name in ("checkpoint_036.pth", "checkpoint_066.pth"):
            trainer.save_checkpoint(str(Path(trainer.output_folder, name)))
            disturb(trainer.network, generator)
        trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    folder = Path(trainer.output_folder_base)
    (folder / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (folder / "dataset.json").write_text(json.dumps(trainer.dataset_json))
    return folder


def disturb(network: torch.nn.Module, generator: torch.Generator, strength: float = 0.1) -> None:
    """Adds noise to the weights, in proportion to them."""
    with torch.no_grad():
        for weights in network.parameters():
            weights.mul_(1 + strength * torch.randn(weights.shape, generator=generator))


def edit_checkpoint(path: Path, change: Any) -> None:
    """Lets a function change the content of a checkpoint."""
    checkpoint = torch.load(path, weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)
