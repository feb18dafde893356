"""Pseudo labels, what a network believes about an unlabeled image and how much, and known ones in the same form.

Logits have shape (B, K, *spatial). With labels, K counts the classes and one of them holds everywhere; with nnU-Net's
regions, K counts regions that hold independently of each other.
"""

from __future__ import annotations

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import ndimage
from torch import Tensor
from torch.nn import functional


def probabilities(logits: Tensor, regions: bool = False) -> Tensor:
    """Softmax, or with regions sigmoid, in float32."""
    return logits.float().sigmoid() if regions else functional.softmax(logits.float(), dim=1)


@torch.no_grad()
def pseudo_label(logits: Tensor, regions: bool = False) -> tuple[Tensor, Tensor]:
    """The most likely label of each voxel and its probability.

    Returns:
        With labels, argmax (B, 1, *spatial) int64 and the maximum of the softmax (B, 1, *spatial) float32.
        With regions, p > .5 (B, K, *spatial) bool and max(p, 1 - p) (B, K, *spatial) float32.
    """
    logits = logits.detach().float()
    if regions:
        return logits > 0, torch.sigmoid(logits.abs())
    largest, label = logits.max(dim=1, keepdim=True)
    return label, torch.exp(largest - logits.logsumexp(dim=1, keepdim=True))


@torch.no_grad()
def runner_up(logits: Tensor, label: Tensor) -> Tensor:
    """The second most likely class of each voxel, shaped as the most likely one: (B, 1, *spatial) int64.

    Class by class, which on a CPU is three times as fast as `argmax` over classes that do not lie together.
    """
    second, largest = torch.zeros_like(label), torch.full_like(logits[:, :1], -torch.inf)
    for index, value in enumerate(logits.detach().split(1, dim=1)):
        value = value.masked_fill(label == index, -torch.inf)
        second = torch.where(value > largest, index, second)
        largest = torch.maximum(largest, value)
    return second


def known_labels(target: Tensor, label_manager: LabelManager) -> tuple[Tensor, Tensor]:
    """nnU-Net's target at full resolution, and where it is known.

    Args:
        target: (B, 1, *spatial) classes, or (B, K, *spatial) regions with a channel of the ignore label, if any, last.

    Returns:
        (B, 1, *spatial) classes, int64, or (B, K, *spatial) regions, bool; and (B, 1, *spatial), bool, False where the
        ignore label was, in whose place there is class 0.
    """
    if label_manager.has_regions:
        label = target[:, : label_manager.num_segmentation_heads].bool()
        known = torch.ones_like(label[:, :1])
        return label, ~target[:, -1:].bool() if label_manager.has_ignore_label else known
    label = target.long()
    if not label_manager.has_ignore_label:
        return label, torch.ones_like(label, dtype=torch.bool)
    known = label != label_manager.ignore_label
    return torch.where(known, label, 0), known


@torch.no_grad()
def class_shares(label: Tensor, num_outputs: int, mask: Tensor | None = None) -> Tensor:
    """The share of voxels that each class or region takes in a pseudo label, (K,) float32.

    With a mask of the voxels that count (bool, of the label's shape), the share of voxels that it takes and that count.
    """
    if label.dtype == torch.bool:
        counted = label if mask is None else label & mask
        return counted.float().mean(dim=[0, *range(2, label.ndim)])
    if mask is not None:
        label = torch.where(mask, label, -1)
    return torch.stack([(label == index).float().mean() for index in range(num_outputs)])


@torch.no_grad()
def largest_components(label: Tensor, num_outputs: int) -> Tensor:
    """The pseudo label with the largest connected component of each class or region; the rest becomes background.

    Voxels that share a corner are connected, as in the code of bidirectional copy-paste (Bai et al., CVPR 2023). The
    work is done on the CPU, sample by sample.
    """
    kept = label.cpu().clone()
    if label.dtype == torch.bool:
        for region in kept.flatten(0, 1).numpy():
            for box in ndimage.find_objects(region.astype(np.uint8)):
                region[box] &= _largest(region[box])
    else:
        for sample in kept[:, 0].numpy():
            boxes = ndimage.find_objects(sample, num_outputs - 1)
            for index, box in enumerate(boxes, 1):
                if box is not None:
                    inside = sample[box] == index
                    sample[box][inside & ~_largest(inside)] = 0
    return kept.to(label.device)


def _largest(inside: np.ndarray) -> np.ndarray:
    """The largest component of a mask that is not empty."""
    components, _ = ndimage.label(inside, ndimage.generate_binary_structure(inside.ndim, inside.ndim))
    return components == 1 + np.bincount(components.ravel())[1:].argmax()
