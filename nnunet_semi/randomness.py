"""Random numbers by number: what is drawn depends on a seed and a place in training, never on what ran before.

nnU-Net leaves its workers unseeded and keeps no random state in its checkpoints. Here every batch and every epoch
starts from a seed derived from (seed, where), so that a training continued from a checkpoint draws exactly what the
unbroken training would have drawn, and nothing has to be stored beside the seed itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def derive_seed(seed: int, *where: int) -> int:
    """A seed of 32 bits for one place; different places give independent streams (numpy's SeedSequence)."""
    return int(np.random.SeedSequence(seed, spawn_key=where).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class NumberedBatches:
    """An endless loader whose i-th batch depends on its seed, the worker and i alone.

    Stands in for an nnU-Net loader in nnU-Net's augmenters. With one worker the order of batches is fixed as well;
    with several, each worker's own sequence is.

    Args:
        loader: an endless iterator of batches that draws from the global random generators.
        seed: the seed of this stream.
        first: the number of the first batch, so that a continued training goes on where it stopped.
    """

    def __init__(self, loader: Iterator[dict[str, Any]], seed: int, first: int = 0) -> None:
        self.loader = loader
        self.seed = seed
        self.number = first
        self.thread_id = 0

    def set_thread_id(self, thread_id: int) -> None:
        """Called by nnU-Net's augmenters in each worker."""
        self.thread_id = thread_id

    def __iter__(self) -> NumberedBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        seed_everything(derive_seed(self.seed, self.thread_id, self.number))
        self.number += 1
        return next(self.loader)
