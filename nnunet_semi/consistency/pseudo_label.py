"""Pseudo labels: what a network believes about an unlabeled image, and how much.

Logits have shape (B, K, *spatial). With labels, K counts the classes and one of them holds everywhere; with nnU-Net's
regions, K counts regions that hold independently of each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
def class_shares(label: Tensor, num_outputs: int) -> Tensor:
    """The share of voxels that each class or region takes in a pseudo label, (K,) float32."""
    if label.dtype == torch.bool:
        return label.float().mean(dim=[0, *range(2, label.ndim)])
    return torch.stack([(label == index).float().mean() for index in range(num_outputs)])
