"""Short real trainings in this process, and what is compared after them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

TIMES = {"epoch_start_timestamps", "epoch_end_timestamps"}
NNUNET = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer"


@contextmanager
def threads_for_processes() -> Iterator[None]:
    """Lets nnU-Net's pools be threads: each process of them would import torch for ten seconds."""
    with ExitStack() as swaps:
        swaps.enter_context(mock.patch("multiprocessing.get_context", return_value=SimpleNamespace(Pool=ThreadPool)))
        swaps.enter_context(mock.patch(f"{NNUNET}.default_num_processes", 1))
        yield


def one_thread(device: torch.device) -> tuple[int, int]:
    """In the place of `share_cores`: with two threads beside another busy process a training takes ten times longer."""
    return 1, int(os.environ["nnUNet_n_proc_DA"])


def train(trainer: Any) -> dict[str, Any]:
    """Runs the whole training without pictures; gives the final checkpoint, as `saved` does."""
    trainer.logger.local_logger.plot_progress_png = lambda folder: None
    try:
        with mock.patch("nnunet_semi.plugin_trainer.share_cores", one_thread):
            trainer.run_training()
    finally:
        stop_workers(trainer)
    return saved(trainer)


def validate(trainer: Any) -> None:
    """nnU-Net's validation after a training, in threads."""
    with threads_for_processes():
        trainer.perform_actual_validation()


def stop_workers(trainer: Any) -> None:
    """Ends the augmentation workers of a training that was interrupted."""
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        getattr(loader, "_finish", lambda: None)()


def saved(trainer: Any, name: str = "checkpoint_final.pth") -> dict[str, Any]:
    """A checkpoint without what differs between any two trainings: times and the arguments of the constructor."""
    return read_checkpoint(Path(trainer.output_folder, name))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """See `saved`."""
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint["init_args"]
    checkpoint["logging"] = {name: value for name, value in checkpoint["logging"].items() if name not in TIMES}
    return checkpoint


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Where two nested values are not equal bit for bit; NaN equals NaN."""
    if type(first) is not type(second):
        return [f"{place}: {type(first).__name__} and {type(second).__name__}"]
    if isinstance(first, dict):
        found = [f"{place}/{key} is in one only" for key in first.keys() ^ second.keys()]
        for key in first.keys() & second.keys():
            found += differences(first[key], second[key], f"{place}/{key}")
        return found
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [f"{place}: {len(first)} and {len(second)} values"]
        pairs = enumerate(zip(first, second, strict=True))
        return [d for index, (a, b) in pairs for d in differences(a, b, f"{place}/{index}")]
    if isinstance(first, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, (float, np.floating)):
        same = bool(first == second) or bool(np.isnan(first) and np.isnan(second))
    else:
        same = first == second
    return [] if same else [f"{place}: {first} and {second}"]
