"""Counts of voxels by their label in reference and prediction, taken once per case, and Dice and IoU from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_semi.labelmaps.files import LabelMap

Label = int | tuple[int, ...]  # a label, or a region of several, as nnU-Net names them
Scores = dict[Label, dict[str, float]]  # of one case: metric, as summary.json calls it → value, NaN if undefined

CHUNK = 1 << 20  # voxels counted at a time: numpy's bincount widens them to 8 bytes


@dataclass(frozen=True)
class Overlap:
    """How many voxels are in the prediction and the reference (true positive), in one of them, or in neither."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def n_pred(self) -> int:
        """Voxels in the prediction."""
        return self.tp + self.fp

    @property
    def n_ref(self) -> int:
        """Voxels in the reference."""
        return self.tp + self.fn

    def dice(self, smooth: float = 0.0) -> float:
        """2 TP / (2 TP + FP + FN), `smooth` added to both sides; NaN if both masks are empty and it is 0."""
        both = self.n_pred + self.n_ref + smooth
        return (2 * self.tp + smooth) / both if both else math.nan

    def iou(self) -> float:
        """TP / (TP + FP + FN); NaN if both masks are empty."""
        either = self.tp + self.fp + self.fn
        return self.tp / either if either else math.nan

    def as_nnunet(self) -> dict[str, float]:
        """The values that nnU-Net's summary.json holds for a class of a case."""
        counts = {
            "FP": self.fp,
            "TP": self.tp,
            "FN": self.fn,
            "TN": self.tn,
            "n_pred": self.n_pred,
            "n_ref": self.n_ref,
        }
        return {"Dice": self.dice(), "IoU": self.iou(), **counts}


@dataclass(frozen=True)
class JointCounts:
    """Voxels of a case by their two labels.

    Attributes:
        labels: all that occur, ascending.
        counts: labels × labels, the reference in the rows and the prediction in the columns.
    """

    labels: list[int]
    counts: NDArray[np.int64]

    def overlap(self, label: Label) -> Overlap:
        """The overlap of one label or region."""
        inside = np.isin(self.labels, members(label))
        tp, fp = self.counts[inside][:, inside].sum(), self.counts[~inside][:, inside].sum()
        fn, tn = self.counts[inside][:, ~inside].sum(), self.counts[~inside][:, ~inside].sum()
        return Overlap(int(tp), int(fp), int(fn), int(tn))


def joint_counts(reference: LabelMap, prediction: LabelMap, ignore_label: int | None = None) -> JointCounts:
    """Counts the voxels of two label maps of one shape.

    Args:
        reference: label map.
        prediction: label map.
        ignore_label: voxels that have it in the reference do not count, as in nnU-Net.
    """
    assert reference.shape == prediction.shape
    if max(reference.max(initial=0), prediction.max(initial=0)) < 256:
        labels, table = list(range(256)), _count(reference.ravel(), prediction.ravel(), 256)
    else:  # first numbered without gaps, or the table would be too large
        known = np.union1d(np.unique(reference), np.unique(prediction))
        rows, columns = (np.searchsorted(known, array.ravel()) for array in (reference, prediction))
        labels, table = [int(label) for label in known], _count(rows, columns, len(known))
    if ignore_label in labels:
        table[labels.index(ignore_label)] = 0
    found = np.flatnonzero(table.any(axis=0) | table.any(axis=1))
    return JointCounts([labels[number] for number in found], table[np.ix_(found, found)])


def _count(reference: NDArray, prediction: NDArray, size: int) -> NDArray[np.int64]:
    table = np.zeros(size * size, np.int64)
    for start in range(0, len(reference), CHUNK):
        pairs = reference[start : start + CHUNK].astype(np.int64) * size
        pairs += prediction[start : start + CHUNK]
        table += np.bincount(pairs, minlength=size * size)
    return table.reshape(size, size)


def members(label: Label) -> tuple[int, ...]:
    """The numbers of a label or region."""
    return label if isinstance(label, tuple) else (label,)


def mask_of(array: LabelMap, label: Label) -> NDArray[np.bool_]:
    """Where a label map has the label, or one of the region's."""
    return np.isin(array, label) if isinstance(label, tuple) else array == label
