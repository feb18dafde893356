"""How far a prediction can be trusted, from 0 to 1: definitions on label maps and logits, nothing else.

Two kinds. Agreement: other predictions of the same case are compared with the reference prediction, by Dice (ST++,
Yang et al., CVPR 2022, for checkpoints of one training). Certainty: the entropy of the reference prediction. Both are
means over what was predicted, never sums, so that a large organ is not taken for an uncertain one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LabelMap = NDArray[np.unsignedinteger]
Classes = Mapping[str, tuple[int, ...]]  # name of a class or region → the labels it consists of
PerClass = dict[str, float | None]  # None: the class is absent from the reference prediction

CHUNK = 2**20  # voxels whose probabilities are in memory at once


def confusion(prediction: LabelMap, reference: LabelMap, num_labels: int) -> NDArray[np.int64]:
    """How often each pair of labels meets: rows are those of the reference, columns those of the prediction."""
    assert prediction.shape == reference.shape
    counts = np.zeros(num_labels**2, dtype=np.int64)
    for first, second in zip(reference, prediction, strict=True):  # slice by slice: bincount takes 8 bytes per voxel
        pairs = first.ravel().astype(np.int64) * num_labels + second.ravel()
        counts += np.bincount(pairs, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def dice_per_class(prediction: LabelMap, reference: LabelMap, classes: Classes) -> PerClass:
    """2·|A ∩ B| / (|A| + |B|) of every class; None for a class that is absent from the reference."""
    num_labels = 1 + max(int(prediction.max()), int(reference.max()), *(max(labels) for labels in classes.values()))
    counts = confusion(prediction, reference, num_labels)
    dice: PerClass = {}
    for name, labels in classes.items():
        chosen = list(labels)
        in_reference, in_prediction = int(counts[chosen].sum()), int(counts[:, chosen].sum())
        both = int(counts[np.ix_(chosen, chosen)].sum())
        dice[name] = 2 * both / (in_reference + in_prediction) if in_reference else None
    return dice


def agreement(members: Sequence[LabelMap], reference: LabelMap, classes: Classes) -> tuple[float, PerClass]:
    """Mean over the members of the mean foreground Dice against the reference.

    Args:
        members: one or more other predictions of the case.
        reference: the prediction that is to be trusted or not.
        classes: background is not among them.

    Returns:
        The score, 0 for an empty reference, and the mean Dice of each class over the members.
    """
    dice = [dice_per_class(member, reference, classes) for member in members]
    means: PerClass = {}
    for name in classes:
        values = [one[name] for one in dice]
        means[name] = None if values[0] is None else float(np.mean(np.array(values, dtype=float)))
    return mean_of_present(means), means


def mean_of_present(values: PerClass) -> float:
    """The mean over the classes that are present; 0 where none is."""
    present = [value for value in values.values() if value is not None]
    return float(np.mean(present)) if present else 0.0


def certainty(logits: Tensor, reference: LabelMap, classes: Classes, regions: bool) -> tuple[float, PerClass]:
    """1 - mean entropy over the predicted foreground, in units of the largest entropy there can be.

    With labels the entropy of a voxel is that of its softmax, divided by ln C. With regions, whose outputs are
    independent, it is the mean of the binary entropies of its outputs, each divided by ln 2.

    Args:
        logits: outputs × shape; of regions in the order of `classes`.
        reference: the label map made of them.
        classes: background is not among them.
        regions: whether the network predicts regions.

    Returns:
        The score, 0 for an empty prediction, and that of each class over its own voxels; of a region, by its own
        output.
    """
    foreground = reference.ravel() > 0
    labels = reference.ravel()[foreground]
    if not len(labels):
        return 0.0, dict.fromkeys(classes)
    uncertain = normalised_entropy(logits.flatten(1), torch.from_numpy(np.flatnonzero(foreground)), regions).numpy()
    scores: PerClass = {}
    for number, (name, values) in enumerate(classes.items()):
        of_class = np.isin(labels, values)
        own = uncertain[number if regions else 0]
        scores[name] = _within_bounds(1 - own[of_class].mean(dtype=float)) if of_class.any() else None
    return _within_bounds(1 - uncertain.mean(dtype=float)), scores


def normalised_entropy(logits: Tensor, voxels: Tensor, regions: bool) -> Tensor:
    """Entropies from 0 to 1: 1 × voxels for softmax, outputs × voxels for regions.

    Args:
        logits: outputs × all voxels, of any precision.
        voxels: indices of those that are asked for.
    """
    found = []
    for chunk in voxels.split(CHUNK):
        values = logits[:, chunk].float()
        if regions:
            log_p, log_q = torch.nn.functional.logsigmoid(values), torch.nn.functional.logsigmoid(-values)
            found.append(-(log_p.exp() * log_p + log_q.exp() * log_q) / math.log(2))
        else:
            log_p = values.log_softmax(0)
            found.append(-(log_p.exp() * log_p).sum(0, keepdim=True) / math.log(len(values)))
    return torch.cat(found, dim=1)


def _within_bounds(score: float) -> float:
    return min(1.0, max(0.0, float(score)))  # rounding may leave it by 1e-8
