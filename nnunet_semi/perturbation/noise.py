"""The input noise of Mean Teacher: Gaussian, clamped."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def add_clamped_noise(
    images: Tensor,
    num_image_channels: int | None = None,
    masked_channels: tuple[int, ...] = (),
    std: float = 0.1,
    limit: float = 0.2,
) -> Tensor:
    """The images, (B, C, *spatial), with N(0, std) noise clamped to ±limit, in new memory (SSL4MIS's Mean Teacher).

    Args:
        num_image_channels: only the first so many channels get noise; None for all.
        masked_channels: channels in which voxels that are exactly 0 stay 0 (`use_mask_for_norm` of nnU-Net's plans).
        std: standard deviation, in image units.
        limit: largest change of a voxel.
    """
    noisy = images.clone()
    changed = noisy[:, :num_image_channels]
    changed += torch.randn_like(changed).mul_(std).clamp_(-limit, limit)
    for channel in masked_channels:
        noisy[:, channel].masked_fill_(images[:, channel] == 0, 0)
    return noisy
