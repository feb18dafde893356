"""nnUNetTrainerHeatmap under DDP: two processes on the CPU stay in step and share what they measure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import distributed as dist

from landmark_dataset import make_landmark_dataset
from nnunet_semi.plugin_trainer import unwrap
from nnunet_semi.trainers.nnUNetTrainerHeatmap import nnUNetTrainerHeatmap
from short_training import NNUNET, differences, one_thread
from small_dataset import environment, plan
from test_ddp import PROCESSES, SHORT, ddp_on_cpu, on_cpu
from tiny_trainer import make_trainer


def process(rank: int, plans_file: Path, folder: Path) -> None:
    """A whole training and its validation in one of the processes; what it found goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=PROCESSES)
    with (
        mock.patch(f"{NNUNET}.DDP", ddp_on_cpu),
        mock.patch("nnunet_semi.plugin_trainer.share_cores", one_thread),
    ):
        trainer = make_trainer(on_cpu(nnUNetTrainerHeatmap), plans_file, fold=0, **SHORT)
        batches = []
        own = trainer.train_step

        def train_step(batch: dict) -> dict:
            batches.append(batch["data"])
            return own(batch)

        trainer.train_step = train_step
        trainer.run_training()
        trainer.perform_actual_validation()
    logged = {name: trainer.logger.get_value(name, step=None) for name in ("landmark_mre", "ema_fg_dice", "val_losses")}
    found = {"weights": unwrap(trainer.network).state_dict(), "batches": batches, "logged": logged}
    torch.save({**found, "output": trainer.output_folder}, folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("heatmap_ddp")
    with mock.patch.dict(os.environ, {**environment(root), "nnUNet_n_proc_DA": "0"}):
        make_landmark_dataset(root, labeled=10)
        torch.multiprocessing.spawn(process, args=(plan(), root), nprocs=PROCESSES)
    yield [torch.load(root / f"rank_{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def test_the_processes_see_different_patches_and_keep_the_same_weights(ranks: list[dict[str, Any]]) -> None:
    assert not torch.equal(ranks[0]["batches"][0], ranks[1]["batches"][0])
    assert differences(ranks[0]["weights"], ranks[1]["weights"]) == []


def test_all_processes_know_the_error_over_all_patches(ranks: list[dict[str, Any]]) -> None:
    assert differences(ranks[0]["logged"], ranks[1]["logged"]) == []
    assert ranks[0]["logged"]["landmark_mre"][0] > 0


def test_the_processes_share_the_final_validation(ranks: list[dict[str, Any]]) -> None:
    folder = Path(ranks[0]["output"], "validation")
    assert len(list(folder.glob("case_*.json"))) == 2 and (folder / "summary.json").is_file()
