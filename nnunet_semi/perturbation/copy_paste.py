"""Copy-paste between labeled and unlabeled patches: what methods that learn from mixed ones share."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_semi.perturbation.cutmix import box_mask, fixed_boxes


def draw_boxes(images: Tensor, side: float) -> Tensor:
    """A box for each of the images, (B, C, *spatial), as `fixed_boxes` draws them: (B, 1, *spatial), True inside."""
    shape = images.shape[2:]
    return box_mask(fixed_boxes(len(images), shape, side), shape, images.device)


def of_one_length(*batches: Tensor) -> list[Tensor]:
    """Batches as long as the longest; shorter ones start again."""
    length = max(map(len, batches))
    return [batch[torch.arange(length, device=batch.device) % len(batch)] for batch in batches]
