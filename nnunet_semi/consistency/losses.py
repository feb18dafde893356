"""Segmentation losses against pseudo labels, with a mask of the voxels that count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

SMOOTH = 1e-5  # nnU-Net's, against 0 / 0


def downsample(label: Tensor, shape: Sequence[int]) -> Tensor:
    """A label map or mask (B, C, *spatial) at a coarser shape, by nearest neighbour as nnU-Net does for its targets."""
    if tuple(label.shape[2:]) == tuple(shape):
        return label
    return functional.interpolate(label.float(), tuple(shape), mode="nearest-exact").to(label.dtype)


def mean_squared_difference(probability: Tensor, goal: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of (probability - goal)² over voxels and outputs, a scalar: the consistency loss of Mean Teacher.

    Args:
        probability: of the student, (B, K, *spatial).
        goal: of the teacher, of the same shape; no gradient flows into it.
        mask: True where a voxel counts, (B, 1, *spatial) or (B, K, *spatial); None for all, and 0 where none does.
    """
    squared = (probability - goal.detach()) ** 2
    if mask is None:
        return squared.mean()
    counted = mask.expand_as(squared).float()
    return (squared * counted).sum() / counted.sum().clamp_min(1)


class PseudoLabelLoss(nn.Module):
    """Cross entropy and soft Dice against a pseudo label, summed over the resolutions of deep supervision.

    Where labels are classes, the loss is softmax cross entropy and Dice without background, as in nnU-Net's
    DC_and_CE_loss; with regions it is binary cross entropy and Dice of each region, as in DC_and_BCE_loss. Unlike
    those it takes a mask of its own, needs no ignore label for it, and is 0 where nothing counts: the Dice part is
    1 - Dice, and its mean over samples is that of those of which something counts.

    Args:
        regions: outputs are regions (sigmoid) instead of classes (softmax).
        weight_ce: weight of the cross entropy.
        weight_dice: weight of the Dice part.
        ce_over_all: divide the sum of the cross entropy by all voxels, those that do not count included, so that the
            term grows with what is kept; without it the mean of those that count is taken.
        dice_smoothing: added to both sides of the quotient in the Dice part, in shares of the voxels that it is taken
            of. Without it a few stray voxels in an otherwise empty pseudo label weigh as much as a whole organ, and two
            networks that teach each other keep them.
        resolution_weights: weight of each output, finest first, as in nnU-Net's deep supervision.
        dice_background: take the Dice of the background too. Without it, and without cross entropy, nothing unlearns a
            blob of a class that the pseudo label does not hold.
        batch_dice: Dice of the whole batch instead of each sample.
        ddp: gather the batch Dice over processes.
    """

    def __init__(
        self,
        regions: bool = False,
        weight_ce: float = 1.0,
        weight_dice: float = 1.0,
        ce_over_all: bool = False,
        dice_smoothing: float = 0.0,
        dice_background: bool = False,
        resolution_weights: Sequence[float] = (1.0,),
        batch_dice: bool = False,
        ddp: bool = False,
    ) -> None:
        super().__init__()
        self.regions = regions
        self.weight_ce = weight_ce
        self.weight_dice = weight_dice
        self.ce_over_all = ce_over_all
        self.dice_smoothing = dice_smoothing
        self.resolution_weights = tuple(resolution_weights)
        nonlinearity = torch.sigmoid if regions else softmax_helper_dim1
        every = regions or dice_background
        self.dice = MemoryEfficientSoftDiceLoss(nonlinearity, batch_dice, do_bg=every, smooth=SMOOTH, ddp=ddp)

    def forward(self, outputs: Tensor | Sequence[Tensor], label: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss, a scalar.

        Args:
            outputs: logits (B, K, *spatial), or a list of them from fine to coarse.
            label: pseudo label at full resolution, (B, 1, *spatial) classes or (B, K, *spatial) regions.
            mask: True where a voxel counts, (B, 1, *spatial) or of the label's shape; None counts every voxel.
        """
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for weight, logits in zip(self.resolution_weights, outputs, strict=False):
            if weight != 0:
                shape = logits.shape[2:]
                coarse_mask = None if mask is None else downsample(mask, shape)
                total = total + weight * self._at_one_resolution(logits.float(), downsample(label, shape), coarse_mask)
        return total

    def _at_one_resolution(self, logits: Tensor, label: Tensor, mask: Tensor | None) -> Tensor:
        loss = logits.new_zeros(())
        if self.weight_ce:
            loss = loss + self.weight_ce * self._cross_entropy(logits, label, mask)
        if self.weight_dice:
            loss = loss + self.weight_dice * self._dice(logits, label, mask)
        return loss

    def _dice(self, logits: Tensor, label: Tensor, mask: Tensor | None) -> Tensor:
        self.dice.smooth = max(SMOOTH, self.dice_smoothing * self._voxels_of_a_dice(logits))
        loss = 1 + self.dice(logits, label, loss_mask=mask)
        if mask is None or self.dice.batch_dice:
            return loss
        counted = mask.flatten(2).any(2)  # a sample of which nothing counts is 0 in a mean that it is no part of
        return loss * (counted.numel() / counted.sum().clamp_min(1))

    def _voxels_of_a_dice(self, logits: Tensor) -> int:
        voxels = logits.shape[2:].numel()
        if self.dice.batch_dice:
            voxels *= len(logits) * (dist.get_world_size() if self.dice.ddp else 1)
        return voxels

    def _cross_entropy(self, logits: Tensor, label: Tensor, mask: Tensor | None) -> Tensor:
        reduction = "mean" if mask is None else "none"
        if self.regions:
            voxels = functional.binary_cross_entropy_with_logits(logits, label.float(), reduction=reduction)
        else:
            voxels = functional.cross_entropy(logits, label[:, 0], reduction=reduction)
        if mask is None:
            return voxels
        counted = mask.expand_as(label).float()
        total = counted.numel() if self.ce_over_all else counted.sum().clamp_min(1)
        return (voxels.reshape(label.shape) * counted).sum() / total
