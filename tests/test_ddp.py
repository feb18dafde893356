"""Two processes under DDP, each with half of a batch, learn what one process learns from the whole batch.

nnU-Net insists on CUDA under DDP; here the processes run on the CPU and speak gloo.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunet_semi.plugin_trainer import CHECKPOINT_KEY, unwrap
from nnunet_semi.trainers.nnUNetTrainerCPS import nnUNetTrainerCPS, nnUNetTrainerCPSCutMix, nnUNetTrainerCPSOriginal
from nnunet_semi.unlabeled.preprocessing import preprocess_unlabeled
from short_training import NNUNET, one_thread
from small_dataset import environment, make_dataset, plan
from tiny_trainer import make_trainer, random_batch

PROCESSES = 2
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 4}
VARIANTS = (nnUNetTrainerCPS, nnUNetTrainerCPSOriginal, nnUNetTrainerCPSCutMix)


def on_cpu(cls: type) -> type:
    """The trainer on the CPU where nnU-Net, under DDP, has chosen a GPU."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):  # noqa: B008
        cls.__init__(self, plans, configuration, fold, dataset_json, device)
        self.device, self.grad_scaler = torch.device("cpu"), None

    return type(cls.__name__, (cls,), {"__init__": __init__})


def ddp_on_cpu(module: nn.Module, device_ids: list[int]) -> DistributedDataParallel:
    """What nnU-Net calls DDP, which takes no devices on the CPU."""
    return DistributedDataParallel(module)


def comparable(plans_file: Path, cls: type = nnUNetTrainerCPS, batch_dice: bool = True, **attributes: Any) -> Any:
    """A trainer whose step has no randomness, with the full weight of the unsupervised loss from the start."""
    trainer = make_trainer(on_cpu(cls), plans_file, ramp_length=0.0, **{**SHORT, **attributes})
    trainer.configuration_manager.configuration["batch_dice"] = batch_dice
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    for network, _ in trainer.trained():  # more decided than at the start of a training, or Dice would hardly matter
        for layer in unwrap(network).decoder.seg_layers:
            layer.weight.data.mul_(5)
    trainer.strong_view = lambda images: images
    trainer.on_train_epoch_start()
    return trainer


def gradients(trainer: Any) -> list[dict[str, Tensor]]:
    """Of each network by parameter, as they are after the last step."""
    networks = (unwrap(network) for network, _ in trainer.trained())
    return [{name: p.grad for name, p in network.named_parameters() if p.grad is not None} for network in networks]


def weights(trainer: Any) -> list[dict[str, Tensor]]:
    return [unwrap(network).state_dict() for network, _ in trainer.trained()]


def half(batch: Any, rank: int) -> Any:
    """The part of a batch that belongs to one of the processes."""
    if isinstance(batch, Tensor):
        return batch.chunk(PROCESSES)[rank]
    if isinstance(batch, dict):
        return {name: half(value, rank) for name, value in batch.items()}
    return [half(value, rank) for value in batch]


# --- in one process ---


def uneven_batch(trainer: Any) -> dict[str, Any]:
    """A batch of whose samples the first half has little foreground, so that Dice depends on what is summed first."""
    batch = random_batch(trainer)
    for target in batch["target"]:
        target[: len(target) // 2, :, target.shape[2] // 8 :] = 0
    batch["unlabeled"][: trainer.batch_size // 2] += torch.linspace(-9, 9, 32)[:, None]
    return batch


def joint_step(plans_file: Path, batch_dice: bool) -> dict[str, Any]:
    """A batch, the weights before a step with it, and the gradients of the step and of its unsupervised part."""
    trainer = comparable(plans_file, batch_dice=batch_dice)
    batch = uneven_batch(trainer)
    before = copy.deepcopy(weights(trainer))
    trainer.losses(batch["data"], batch["target"], batch["unlabeled"]).unsupervised.backward()
    unsupervised = copy.deepcopy(gradients(trainer))
    trainer.train_step(batch)
    for network in gradients(trainer):
        assert sum(g.square().sum() for g in network.values()) < 10**2  # clipping at 12 would hide a factor
    return {"batch": batch, "weights": before, "gradients": gradients(trainer), "unsupervised": unsupervised}


# --- in each of two processes ---


def split_step(plans_file: Path, joint: dict[str, Any], batch_dice: bool) -> dict[str, Any]:
    """The same step under DDP, and the curves that are logged after it."""
    trainer = comparable(plans_file, batch_dice=batch_dice)
    for (network, _), values in zip(trainer.trained(), joint["weights"], strict=True):
        unwrap(network).load_state_dict(values)
    output = trainer.train_step(half(joint["batch"], trainer.local_rank))
    trainer.on_train_epoch_end([output])
    logged = [trainer.logger.get_value(name, step=0) for name in trainer.curves]
    return {"gradients": gradients(trainer), "output": output, "logged": logged}


def step_of(cls: type, plans_file: Path) -> list[dict[str, Tensor]]:
    """The weights after a step with batches that differ between the processes."""
    trainer = comparable(plans_file, cls)
    trainer.train_step(random_batch(trainer, seed=trainer.local_rank))
    return weights(trainer)


def whole_training(plans_file: Path, folder: Path) -> dict[str, Any]:
    """What differs between the processes in a training, and what must not."""
    trainer = make_trainer(on_cpu(nnUNetTrainerCPS), plans_file, **{**SHORT, "seed": None})
    seen = []
    own = trainer.train_step

    def train_step(batch: dict) -> dict:
        seen.append(batch)
        return own(batch)

    trainer.train_step = train_step
    trainer.run_training()
    trainer.save_checkpoint(str(folder / f"of_rank_{trainer.local_rank}.pth"))
    again = make_trainer(on_cpu(nnUNetTrainerCPS), plans_file, **{**SHORT, "seed": None})
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    found = {"seed": trainer.seed, "batches": seen, "weights": weights(trainer), "loaded": weights(again)}
    return {**found, "curves": trainer.logger.get_checkpoint()}


def process(rank: int, plans_file: Path, folder: Path) -> None:
    """All that is done in one process; what it found goes to a file."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=PROCESSES)
    with (
        mock.patch(f"{NNUNET}.DDP", ddp_on_cpu),
        mock.patch("nnunet_semi.plugin_trainer.share_cores", one_thread),
    ):
        joint = torch.load(folder / "joint.pt", weights_only=False)
        found = {
            "steps": {dice: split_step(plans_file, joint[dice], dice) for dice in joint},
            "variants": {cls.__name__: step_of(cls, plans_file) for cls in VARIANTS},
            "training": whole_training(plans_file, folder),
        }
    torch.save(found, folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a joint step, and then two processes, have left what they found."""
    root = tmp_path_factory.mktemp("ddp")
    with mock.patch.dict(os.environ, {**environment(root), "nnUNet_n_proc_DA": "0"}):
        make_dataset(root)
        plans_file = plan()
        preprocess_unlabeled(1, ["2d"], num_processes=1, progress=False)
        torch.save({dice: joint_step(plans_file, dice) for dice in (True, False)}, root / "joint.pt")
        torch.multiprocessing.spawn(process, args=(plans_file, root), nprocs=PROCESSES)
        yield root


@pytest.fixture(scope="module")
def joint(folder: Path) -> dict[bool, dict[str, Any]]:
    return torch.load(folder / "joint.pt", weights_only=False)


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


# Sums are taken in another order (a relative 1e-7 for each, through some 20 layers and back), and under DDP nnU-Net
# gives the coarsest output a weight of 1e-6 instead of 0.
close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("batch_dice", [True, False])
def test_two_halves_give_the_gradients_of_the_whole(joint, ranks, batch_dice):
    for network in (0, 1):
        expected = joint[batch_dice]["gradients"][network]
        for rank in ranks:
            found = rank["steps"][batch_dice]["gradients"][network]
            for name, gradient in expected.items():
                close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("part", ["gradients", "unsupervised"])
def test_the_comparison_tells_the_dice_of_the_batch_from_that_of_samples(joint, part):
    for of_batch, of_samples in zip(joint[True][part], joint[False][part], strict=True):
        with pytest.raises(AssertionError):
            close(list(of_batch.values()), list(of_samples.values()))


@pytest.mark.parametrize("batch_dice", [True, False])
def test_curves_are_means_over_the_processes(ranks, batch_dice):
    steps = [rank["steps"][batch_dice] for rank in ranks]
    own = torch.tensor([step["output"]["curves"].tolist() for step in steps])
    logged = torch.tensor([step["logged"] for step in steps])
    assert not torch.equal(own[0], own[1])
    assert torch.equal(logged[0], logged[1])
    torch.testing.assert_close(logged[0], own.mean(0)[: logged.shape[1]])


@pytest.mark.parametrize("name", [cls.__name__ for cls in VARIANTS])
def test_networks_stay_the_same_in_all_processes(ranks, name):
    first, second = (rank["variants"][name] for rank in ranks)
    for network, other in zip(first, second, strict=True):
        assert all(torch.equal(value, other[key]) for key, value in network.items())


def test_processes_share_a_seed_that_was_drawn_and_see_different_batches(ranks):
    first, second = (rank["training"] for rank in ranks)
    assert first["seed"] == second["seed"]
    for kind in ("data", "unlabeled"):
        for one, other in zip(first["batches"], second["batches"], strict=True):
            assert one[kind].shape == (2, 1, 32, 32)  # half of the batch
            assert not torch.equal(one[kind], other[kind])


def test_only_the_first_process_writes_and_all_can_read(folder, ranks):
    assert [path.name for path in folder.glob("of_rank_*.pth")] == ["of_rank_0.pth"]
    [path] = folder.rglob("checkpoint_final.pth")
    checkpoint = torch.load(path, weights_only=False)
    found = checkpoint["network_weights"], checkpoint[CHECKPOINT_KEY]["network_2"]
    for rank in ranks:
        for kind in ("weights", "loaded"):
            for network, values in zip(found, rank["training"][kind], strict=True):
                assert network.keys() == values.keys()
                assert all(torch.equal(value, values[name]) for name, value in network.items())
