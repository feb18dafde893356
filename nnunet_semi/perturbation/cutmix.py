"""CutMix: boxes with UniMatch's statistics, pasted from another sample of the batch, in 2D and 3D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CANDIDATES = 64
ROUNDS = 1000


@dataclass(frozen=True)
class CutMix:
    """One draw of boxes; calling it mixes any tensor of the batch by the same boxes from the same source samples.

    Sample i receives its box from sample i - 1 (the first one from the last): always another sample, and in a
    shuffled stream as good as a random one.

    Args:
        mask: (B, 1, *spatial), bool, True inside the boxes.

    Example:
        >>> mix = draw_cutmix(images)
        >>> images, pseudo_label, confidence = mix(images), mix(pseudo_label), mix(confidence)
    """

    mask: Tensor

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor, (B, C, *spatial) or (B, *spatial) of any type, with the boxes pasted; in new memory."""
        return paste(self.mask, tensor, tensor.roll(1, dims=0))


def draw_cutmix(
    images: Tensor,
    p: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> CutMix:
    """Draws boxes for a batch of images, (B, C, *spatial), on their device; parameters as in `cutmix_boxes`.

    A batch of one holds no other sample to paste from, so there it draws no box.
    """
    batch_size, spatial_shape = images.shape[0], images.shape[2:]
    corners = cutmix_boxes(batch_size, spatial_shape, p if batch_size > 1 else 0.0, area, aspect)
    return CutMix(box_mask(corners, spatial_shape, images.device))


def cutmix_boxes(
    batch_size: int,
    spatial_shape: Sequence[int],
    p: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Tensor:
    """Corners of one random box per sample, as published with UniMatch (Yang et al., CVPR 2023).

    The share of the image, f ~ U(area), is drawn once; shape and place are redrawn until the box lies inside. In 2D
    r ~ U(aspect), h = H √(f r), w = W √(f / r): UniMatch's box where H = W, and of share f where not. In 3D
    log tᵢ ~ U(-a/2, a/2) with a = log(largest aspect), sideᵢ = sizeᵢ · f^⅓ · tᵢ / (t₁ t₂ t₃)^⅓: share f, no axis
    favoured, and no two sides, in shares of their axes, further apart than the largest aspect. Shares of axes rather
    than voxels, because a cube of 40 % of a flat patch (16, 320, 320) would never lie inside. Sides are rounded.

    Drawn on the CPU from its default generator: a few hundred numbers, and nothing waits for an accelerator.

    Args:
        spatial_shape: (H, W) or (D, H, W).
        p: probability that a sample gets a box.
        area: range of the share of the image's area or volume.
        aspect: range of the ratio of sides; in 3D only its upper end counts.

    Returns:
        (B, dim, 2), int64, [start, stop) along each axis; zeros where there is no box.

    Raises:
        ValueError: not 2D or 3D, a probability or share out of range, or shapes of which none lies inside.
    """
    _check(spatial_shape, p, area, aspect)
    size = torch.tensor(spatial_shape)
    corners = torch.zeros(batch_size, len(size), 2, dtype=torch.int64)
    share = area[0] + (area[1] - area[0]) * torch.rand(batch_size)
    waiting = (torch.rand(batch_size) < p).nonzero().flatten()
    for _ in range(ROUNDS):
        if waiting.numel() == 0:
            return corners
        side = _sides(share[waiting], size, aspect)
        start = (torch.rand(side.shape) * size).long()
        inside = (start + side <= size).all(dim=-1)
        found, first = inside.any(dim=1), inside.int().argmax(dim=1)
        rows = torch.arange(len(waiting))
        boxes = torch.stack([start, start + side], dim=-1)[rows, first]
        corners[waiting[found]] = boxes[found]
        waiting = waiting[~found]
    raise ValueError(f"area {area} with aspect {aspect}: no such box lies inside; expected aspects nearer to 1")


def fixed_boxes(batch_size: int, spatial_shape: Sequence[int], side: float = 2 / 3) -> Tensor:
    """Corners of one box per sample with sides of `side` times the image's, rounded down, anywhere inside.

    The boxes of bidirectional copy-paste (Bai et al., CVPR 2023), there one for the whole batch.

    Returns:
        As `cutmix_boxes`.
    """
    size = torch.tensor(spatial_shape)
    sides = (size * side).long().clamp(min=1)
    start = (torch.rand(batch_size, len(size)) * (size - sides + 1)).long()
    return torch.stack([start, start + sides], dim=-1)


def _sides(share: Tensor, size: Tensor, aspect: tuple[float, float]) -> Tensor:
    """Candidates for the sides of boxes of the given shares, in voxels: (B, CANDIDATES, dim), int64."""
    dim = len(size)
    if dim == 2:
        ratio = aspect[0] + (aspect[1] - aspect[0]) * torch.rand(len(share), CANDIDATES)
        shape = torch.stack([ratio, 1 / ratio], dim=-1).sqrt()
    else:
        log_shape = (torch.rand(len(share), CANDIDATES, dim) - 0.5) * math.log(aspect[1])
        shape = torch.exp(log_shape - log_shape.mean(dim=-1, keepdim=True))
    relative = share[:, None, None] ** (1 / dim) * shape
    return (relative * size).round().long().clamp(min=1)


def box_mask(corners: Tensor, spatial_shape: Sequence[int], device: torch.device | str) -> Tensor:
    """(B, 1, *spatial), bool, True inside the boxes of `cutmix_boxes`, made on the device."""
    corners = corners.to(device, non_blocking=True)
    dim = len(spatial_shape)
    mask = torch.ones(len(corners), *[1] * (dim + 1), dtype=torch.bool, device=device)
    for axis, size in enumerate(spatial_shape):
        voxels = torch.arange(size, device=device)
        start, stop = corners[:, axis, 0, None], corners[:, axis, 1, None]
        inside = (voxels >= start) & (voxels < stop)
        mask = mask & inside.view(len(corners), 1, *[size if other == axis else 1 for other in range(dim)])
    return mask


def paste(mask: Tensor, tensor: Tensor, source: Tensor) -> Tensor:
    """The source inside the mask and the tensor outside, in new memory.

    Args:
        mask: (B, 1, *spatial), bool.
        tensor: (B, C, *spatial), or (B, *spatial) as labels and confidences often come.
        source: like the tensor.

    Raises:
        ValueError: tensor and source differ in shape, or do not fit the mask.
    """
    dim = mask.ndim - 2
    mask = mask[:, 0] if tensor.ndim == dim + 1 else mask
    fits = tensor.ndim == mask.ndim and tensor.shape[0] == mask.shape[0] and tensor.shape[-dim:] == mask.shape[-dim:]
    if not fits or tensor.shape != source.shape:
        shapes = f"mask {tuple(mask.shape)}, tensor {tuple(tensor.shape)}, source {tuple(source.shape)}"
        raise ValueError(f"{shapes} do not fit; expected one batch size and one spatial shape (full resolution only)")
    return torch.where(mask, source, tensor)


def _check(spatial_shape: Sequence[int], p: float, area: tuple[float, float], aspect: tuple[float, float]) -> None:
    if len(spatial_shape) not in (2, 3) or min(spatial_shape) < 1:
        raise ValueError(f"spatial_shape is {tuple(spatial_shape)}; expected (H, W) or (D, H, W), each at least 1")
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p!r}; expected a probability from 0 to 1")
    if not 0 < area[0] <= area[1] < 1:
        raise ValueError(f"area is {area}; expected shares (low, high) between 0 and 1")
    if not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"aspect is {aspect}; expected (low, high) above 0")
