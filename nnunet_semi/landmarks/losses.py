"""What the network loses when its heatmaps are not those of the points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_semi.landmarks.heatmaps import at_resolution, heatmap_logits, render

MapLoss = Callable[[Tensor, Tensor], Tensor]  # logits and heatmaps (N, M) -> (N,), one row per map


class HeatmapLoss(nn.Module):
    """The mean loss over all landmarks that are not missing, over all resolutions of deep supervision.

    Args:
        map_loss: the loss of one heatmap.
        sigma: of the heatmaps in voxels per axis, at full resolution.
        resolution_weights: of the outputs, finest first; one output needs none.
    """

    def __init__(self, map_loss: MapLoss, sigma: Sequence[float], resolution_weights: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.map_loss = map_loss
        self.sigma = tuple(sigma)
        self.resolution_weights = tuple(resolution_weights)

    def forward(self, outputs: Tensor | Sequence[Tensor], points: Tensor, weights: Tensor | None = None) -> Tensor:
        """A scalar; 0 with a gradient of 0 where all landmarks are missing or weigh nothing.

        Args:
            outputs: (B, 1 + L, *shape), or a list of them with deep supervision.
            points: (B, L, dim) in voxels of the first output, NaN for missing ones; a point outside makes a heatmap of
                (nearly) zeros, which is learned.
            weights: (B, L) how much each landmark counts; the weighted sum is divided by the number of landmarks, not
                by the sum of the weights, so that a batch of unsure points counts less.
        """
        known = ~points.isnan().any(-1)
        weights = known.float() if weights is None else torch.where(known, weights, 0.0)
        weights = (weights / known.sum().clamp(min=1)).flatten()
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        full = outputs[0].shape[2:]
        losses = []
        for output, weight in zip(outputs, self.resolution_weights, strict=True):
            if weight:
                factors = [new / old for new, old in zip(output.shape[2:], full, strict=True)]
                losses.append(weight * (weights * self._losses(output, points, factors)).sum())
        return torch.stack(losses).sum()

    def _losses(self, output: Tensor, points: Tensor, factors: Sequence[float]) -> Tensor:
        """Of each heatmap, (B · L,)."""
        sigma = [max(s * factor, 1.0) for s, factor in zip(self.sigma, factors, strict=True)]
        target = render(at_resolution(points, factors), output.shape[2:], sigma)
        return self.map_loss(heatmap_logits(output).flatten(2).flatten(0, 1), target.flatten(2).flatten(0, 1))


def dice_bce_where(logits: Tensor, target: Tensor) -> Tensor:
    """`dice_bce` and a fifth of `where`, without which a map that peaks in a wrong place may never leave it.

    Dice has no gradient where two peaks do not meet, and to the mean over the map a few voxels are next to nothing: in
    short trainings (BENCHMARKS.md) single landmarks stayed at the place of another structure in every image.
    """
    return dice_bce(logits, target) + 0.2 * where(logits, target)


def where(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of the softmax over the voxels of a map: the place of the peak, whatever its height.

    A target of less than one voxel in all, whose point is outside of the map, counts in proportion.
    """
    return -(target * logits.log_softmax(1)).sum(1) / target.sum(1).clamp(min=1)


def dice_bce(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice with squares in the denominator, which is 0 for equal maps, and binary cross entropy.

    It weighs a small peak as much as the large background, and asks for its shape, not for its volume.
    """
    maps = logits.sigmoid()
    overlap = (2 * (maps * target).sum(1) + 1e-3) / (maps.square().sum(1) + target.square().sum(1) + 1e-3)
    return 1 - overlap + functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)


def l1(logits: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return (logits.sigmoid() - target).abs().mean(1)


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """CenterNet's focal loss (Zhou et al., 2019) with logarithms of base 2, as in the baseline of CL-Detection 2023.

    The sum over the map, divided by the number of its peak voxels: those above .9. The baseline renders at whole
    voxels, where there always is one; here the voxel next to a point within the map is one in any case.
    """
    maps, log_of_2 = logits.sigmoid(), math.log(2)
    nearest = (target == target.amax(1, keepdim=True)) & (target > 0.5)
    peak = (target > 0.9) | nearest
    hit = -functional.logsigmoid(logits) / log_of_2 * (1 - maps).square()
    avoided = -functional.logsigmoid(-logits) / log_of_2 * maps.square() * (1 - target) ** 4
    return torch.where(peak, hit, avoided).sum(1) / peak.sum(1).clamp(min=1)
