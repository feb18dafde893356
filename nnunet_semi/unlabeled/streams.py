"""Two streams of patches, labeled and unlabeled, in one loader, so that one set of workers serves both."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_semi.pipelines import GeometryOnly


def _never(sample: int) -> bool:
    return False


def unlabeled_loader(labeled: nnUNetDataLoader, cases: nnUNetBaseDataset, batch_size: int) -> nnUNetDataLoader:
    """The labeled loader, turned to unlabeled cases: uniform sampling, geometry only.

    Args:
        labeled: the loader that nnU-Net made for training, of any subclass; it stays as it is.
        cases: the preprocessed unlabeled cases.
        batch_size: patches per batch.
    """
    loader = copy.copy(labeled)
    loader._data = cases
    loader.indices = np.array(cases.identifiers)
    loader.batch_size = batch_size
    loader.sampling_probabilities = None
    loader.has_ignore = False  # nnU-Net would look for annotated voxels
    loader.get_do_oversample = _never  # nnU-Net would look for foreground
    loader.transforms = GeometryOnly(labeled.transforms)
    return loader


class TwoStreams:
    """Batches of nnU-Net's labeled loader, each with a batch of unlabeled images beside it.

    A batch is the labeled loader's {'data', 'target', 'keys'} and 'unlabeled' (B, C, *patch), float32, in the
    geometry that all views of a patch share, with 'unlabeled_keys', the B case names.
    """

    def __init__(self, labeled: nnUNetDataLoader, unlabeled: nnUNetDataLoader) -> None:
        self.streams = [labeled, unlabeled]

    def set_thread_id(self, thread_id: int) -> None:
        """Called by nnU-Net's augmenters in each worker."""
        for stream in self.streams:
            stream.set_thread_id(thread_id)

    def __iter__(self) -> TwoStreams:
        return self

    def __next__(self) -> dict[str, Any]:
        labeled, unlabeled = (next(stream) for stream in self.streams)
        return {**labeled, "unlabeled": unlabeled["data"], "unlabeled_keys": unlabeled["keys"]}
