"""Copy-paste between labeled and unlabeled patches: what methods that learn from mixed ones share."""

from __future__ import annotations

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_semi.perturbation.cutmix import box_mask, fixed_boxes


def draw_boxes(images: Tensor, side: float) -> Tensor:
    """A box for each of the images, (B, C, *spatial), as `fixed_boxes` draws them: (B, 1, *spatial), True inside."""
    shape = images.shape[2:]
    return box_mask(fixed_boxes(len(images), shape, side), shape, images.device)


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


def of_one_length(*batches: Tensor) -> list[Tensor]:
    """Batches as long as the longest; shorter ones start again."""
    length = max(map(len, batches))
    return [batch[torch.arange(length, device=batch.device) % len(batch)] for batch in batches]
