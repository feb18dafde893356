"""Real trainers on the tiny datasets: narrow networks, small batches, a few iterations."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch


def tiny_plans(plans_file: Path, configuration: str = "2d", batch_size: int = 2, width: int = 4) -> dict[str, Any]:
    """The plans as nnU-Net's command hands them to a trainer, with a narrow network and a small batch."""
    plans = json.loads(plans_file.read_text())
    settings = plans["configurations"][configuration]
    settings["batch_size"] = batch_size
    if "inherits_from" in settings:
        inherited = plans["configurations"][settings["inherits_from"]]
        settings["architecture"] = copy.deepcopy(inherited["architecture"])
    kwargs = settings["architecture"]["arch_kwargs"]
    kwargs["features_per_stage"] = [width * 2**stage for stage in range(kwargs["n_stages"])]
    return {**plans, "continue_training": False}


def make_trainer(cls: type, plans_file: Path, configuration: str = "2d", fold: int | str = "all", **attributes: Any):
    """A trainer of a subclass of `cls` with these class attributes, on the CPU; `batch_size` goes to the plans."""
    plans = tiny_plans(plans_file, configuration, attributes.pop("batch_size", 2))
    dataset_json = json.loads((plans_file.parent / "dataset.json").read_text())
    short = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "seed": 3}
    # no class is learned in so few iterations
    attributes = {"__module__": __name__, "wait_for_classes": False, **short, **attributes}
    return type(cls.__name__, (cls,), attributes)(plans, configuration, fold, dataset_json, torch.device("cpu"))


def random_batch(trainer: Any, seed: int = 0) -> dict[str, Any]:
    """A batch as the two streams give it, of random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = trainer.configuration_manager.patch_size
    channels = trainer.num_input_channels
    size = trainer.batch_size
    labels = trainer.label_manager.num_segmentation_heads
    full = torch.randint(0, labels, (size, 1, *shape), generator=generator, dtype=torch.int16)
    if trainer.label_manager.has_regions:
        full = torch.rand((size, labels, *shape), generator=generator) < 0.4
    target: Any = full
    if trainer.enable_deep_supervision:
        scales = trainer._get_deep_supervision_scales()
        shapes = [[round(n * s) for n, s in zip(shape, scale, strict=True)] for scale in scales]
        resize = torch.nn.functional.interpolate
        target = [resize(full.float(), s, mode="nearest-exact").to(full.dtype) for s in shapes]
    images = [torch.randn((size, channels, *shape), generator=generator) for _ in range(2)]
    return {"data": images[0], "target": target, "unlabeled": images[1]}


def initialized(cls: type, plans_file: Path, **attributes: Any) -> Any:
    """A trainer that may step."""
    trainer = make_trainer(cls, plans_file, **attributes)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_train_epoch_start()
    return trainer


def undisturbed(cls: type, plans_file: Path, **attributes: Any) -> Any:
    """A trainer that may step, whose views are what they are made from; a teacher differs from its student."""
    trainer = initialized(cls, plans_file, **attributes)
    generator = torch.Generator().manual_seed(0)
    for parameter in trainer.teacher.parameters() if hasattr(trainer, "teacher") else ():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    trainer.strong_view = lambda images: images
    return trainer


def losses_of(trainer: Any, batch: dict[str, Any]) -> Any:
    """What the trainer's method makes of a batch."""
    return trainer.losses(batch["data"], batch["target"], batch["unlabeled"])
