"""Every method under DDP: two processes on the CPU stay in step, and learn what one learns from the whole batch."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from nnunet_semi.consistency.trust import Trust
from nnunet_semi.plugin_trainer import CHECKPOINT_KEY, unwrap
from nnunet_semi.trainers.nnUNetTrainerTeacher import nnUNetTrainerTeacher
from nnunet_semi.trainers.nnUNetTrainerUniMatch import nnUNetTrainerUniMatch, nnUNetTrainerUniMatchClassAdaptive
from nnunet_semi.trainers.nnUNetTrainerUniMatchV2 import nnUNetTrainerUniMatchV2
from nnunet_semi.unlabeled.preprocessing import preprocess_unlabeled
from short_training import NNUNET, one_thread
from small_dataset import environment, make_dataset, plan
from test_ddp import PROCESSES, SHORT, close, comparable, ddp_on_cpu, gradients, half, on_cpu
from test_methods import METHODS
from tiny_trainer import make_trainer, random_batch

SEEN = np.array([[(8, 2), (1, 1), (1, 1)], [(2, 0), (0, 6), (0, 6)]])  # process × true, false positives, missed × class
SPREAD = [0.5, 1.5]  # of the share of a class in pseudo labels, by process


def networks(trainer: Any) -> dict[str, dict[str, Tensor]]:
    found = {"student": unwrap(trainer.network).state_dict()}
    if isinstance(trainer, nnUNetTrainerTeacher):
        found["teacher"] = trainer.teacher.module.state_dict()
    if isinstance(trainer, nnUNetTrainerUniMatchClassAdaptive):
        found["thresholds"] = trainer.thresholds.state_dict()
    return found


def without_draws(plans_file: Path) -> Any:
    """UniMatch as a function of its batch: no boxes, no dropped features."""
    trainer = comparable(plans_file, nnUNetTrainerUniMatch, cutmix_p=0.0, threshold=0.5)
    trainer.dropout.independent = trainer.dropout.undisturbed
    return trainer


def joint_step(plans_file: Path) -> dict[str, Any]:
    trainer = without_draws(plans_file)
    batch = random_batch(trainer)
    before = copy.deepcopy(unwrap(trainer.network).state_dict())
    kept = trainer.train_step(batch)["curves"][-1]
    assert 0 < kept < 1
    return {"batch": batch, "weights": before, "gradients": gradients(trainer)[0]}


# --- in each of two processes ---


def split_step(plans_file: Path, joint: dict[str, Any]) -> dict[str, Tensor]:
    trainer = without_draws(plans_file)
    unwrap(trainer.network).load_state_dict(joint["weights"])
    trainer.train_step(half(joint["batch"], trainer.local_rank))
    return gradients(trainer)[0]


def steps_of(cls: type, plans_file: Path) -> dict[str, dict[str, Tensor]]:
    """The networks after steps with batches that differ between the processes, and a validation step."""
    trainer = comparable(plans_file, cls, threshold=0.4, pretraining=0.5, num_epochs=1)
    for step in range(2):
        trainer.train_step(random_batch(trainer, seed=10 * step + trainer.local_rank))
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.validation_step(random_batch(trainer))
    return networks(trainer)


def whole_training(plans_file: Path) -> dict[str, Any]:
    trainer = make_trainer(on_cpu(nnUNetTrainerUniMatchV2), plans_file, **{**SHORT, "seed": None})
    trainer.run_training()
    again = make_trainer(on_cpu(nnUNetTrainerUniMatchV2), plans_file, **{**SHORT, "seed": None})
    again.load_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    return {"trained": networks(trainer), "loaded": networks(again)}


def learned(plans_file: Path, rank: int) -> float:
    """The Dice of the class that is learned worst, after a validation in which each process saw other images."""
    trainer = make_trainer(on_cpu(nnUNetTrainerUniMatchV2), plans_file, **SHORT, wait_for_classes=True)
    trainer.initialize()
    names, counts = ("tp_hard", "fp_hard", "fn_hard"), SEEN[rank]
    trainer.on_validation_epoch_end([{"loss": np.float32(1), **dict(zip(names, counts, strict=True))}])
    return trainer._learned()


def trusted(rank: int) -> dict[str, Tensor]:
    """What is trusted where each process makes other pseudo labels, of which a part counts."""
    trust = Trust(2, ddp=True)
    for share in (0.3, 0.1):
        for _ in range(60):
            mine = torch.tensor([1 - share * SPREAD[rank], share * SPREAD[rank]])
            trust.update(mine, mine * torch.tensor([1, 0.08 * rank]), torch.tensor([1.0, 2 * rank * 0.25]))
    return {"recent": trust.recent, "long": trust.long, "factor": trust()}


def process(rank: int, plans_file: Path, folder: Path) -> None:
    """All that is done in one process; what it found goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=PROCESSES)
    with mock.patch(f"{NNUNET}.DDP", ddp_on_cpu), mock.patch("nnunet_semi.plugin_trainer.share_cores", one_thread):
        found = {
            "gradients": split_step(plans_file, torch.load(folder / "joint.pt", weights_only=False)),
            "methods": {cls.__name__: steps_of(cls, plans_file) for cls in METHODS},
            "training": whole_training(plans_file),
            "learned": learned(plans_file, rank),
            "trust": trusted(rank),
        }
    torch.save(found, folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


# --- what they found ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a joint step, and then two processes, have left what they found."""
    root = tmp_path_factory.mktemp("ddp")
    with mock.patch.dict(os.environ, {**environment(root), "nnUNet_n_proc_DA": "0"}):
        make_dataset(root)
        plans_file = plan()
        preprocess_unlabeled(1, ["2d"], num_processes=1, progress=False)
        torch.save(joint_step(plans_file), root / "joint.pt")
        torch.multiprocessing.spawn(process, args=(plans_file, root), nprocs=PROCESSES)
        yield root


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def test_two_halves_give_the_gradients_of_the_whole(folder, ranks):
    joint = torch.load(folder / "joint.pt", weights_only=False)
    for rank in ranks:
        for name, gradient in joint["gradients"].items():
            close(rank["gradients"][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("cls", METHODS)
def test_networks_and_thresholds_stay_the_same_in_all_processes(ranks, cls):
    first, second = (rank["methods"][cls.__name__] for rank in ranks)
    assert ("teacher" in first) == issubclass(cls, nnUNetTrainerTeacher)
    for kind, values in first.items():
        assert all(torch.equal(value, second[kind][name]) for name, value in values.items()), kind


def test_the_class_that_is_learned_worst_is_that_of_all_processes(ranks):
    """2 · 2 / (2 · 2 + 7 + 7), where the first process alone would have 2 · 2 / (2 · 2 + 1 + 1)."""
    assert [rank["learned"] for rank in ranks] == pytest.approx([4 / 18] * 2)


def test_pseudo_labels_of_all_processes_decide_how_far_they_are_trusted(ranks):
    one = Trust(2)
    for share in (0.3, 0.1):
        for _ in range(60):
            both = torch.tensor([1 - share, share])
            one.update(both, both * torch.tensor([1, 0.06]), torch.tensor([1.0, 0.25]))
    for rank in ranks:
        torch.testing.assert_close(rank["trust"]["recent"], one.recent)
        torch.testing.assert_close(rank["trust"]["long"], one.long)
        assert 0 < one.held < 1 and rank["trust"]["factor"] == pytest.approx(one().item(), abs=1e-4)


def test_the_checkpoint_holds_the_teacher_for_nnunet_and_the_student_beside_it(folder, ranks):
    [path] = folder.rglob("checkpoint_final.pth")
    checkpoint = torch.load(path, weights_only=False)
    found = {"teacher": checkpoint["network_weights"], "student": checkpoint[CHECKPOINT_KEY]["student"]}
    for rank in ranks:
        for kind in ("trained", "loaded"):
            for which, values in rank["training"][kind].items():
                assert values.keys() == found[which].keys()
                assert all(torch.equal(value, found[which][name]) for name, value in values.items())
