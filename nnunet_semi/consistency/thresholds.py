"""Which voxels of a pseudo label are sure enough to be learned: thresholds of confidence and of uncertainty."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_semi.consistency.pseudo_label import runner_up


class ClassThresholds(nn.Module):
    """A confidence threshold per class that follows how sure the network is of that class.

        τ(c) = τ · a(c) / max a        a(c): moving average of the mean confidence of the voxels labeled c

    The surest class keeps the fixed threshold τ and the others get one in proportion, so that a small structure of
    which the network is never 95 % sure takes part as well. These are the local thresholds of FreeMatch (Wang et al.,
    ICLR 2023), changed in two ways for voxels: the mean runs over the voxels labeled c instead of the
    probability of c over all, which would only tell how common a class is; and the global part stays at τ instead
    of following the mean confidence, which lets most voxels in while the network still knows nothing. As there, a(c)
    is updated with a decay of .999, and as in `MovingAverage` evenly at first. A batch without a class changes
    nothing for it, nor does one in which its confidence is not finite, as after an overflow of half precision. A class
    that was never seen counts as fully sure: its threshold is the highest.

    A voxel counts if it reaches the lower of the thresholds of its two likeliest classes. With that of its label alone,
    of the voxels between a structure and the background those on its side would count at .6 and those on the other
    at .95, and what a network learns from them grows into whatever lies around it.

    With regions, c runs over the regions and, as the last, over what lies outside of each.

    Args:
        num_outputs: classes, or regions.
        regions: outputs are regions.
        threshold: τ.
        decay: of the moving average.
        ddp: take the means over the batches of all processes.
    """

    confidence: Tensor
    updates: Tensor

    def __init__(
        self, num_outputs: int, regions: bool = False, threshold: float = 0.95, decay: float = 0.999, ddp: bool = False
    ) -> None:
        super().__init__()
        self.regions = regions
        self.threshold = threshold
        self.decay = decay
        self.ddp = ddp
        count = num_outputs + regions
        self.register_buffer("confidence", torch.ones(count))
        self.register_buffer("updates", torch.zeros(count))

    @property
    def thresholds(self) -> Tensor:
        """τ(c), (K,) or, with regions, (K + 1,)."""
        seen = torch.where(self.updates > 0, self.confidence, 0)
        surest = torch.where(seen.amax() > 0, seen.amax(), 1)
        return self.threshold * (self.confidence / surest).clamp(max=1)

    @torch.no_grad()
    def update(self, label: Tensor, confidence: Tensor) -> None:
        """Learn from a batch of pseudo labels and confidences, as `pseudo_label` gives them."""
        sums = torch.stack([self._per_class(label, confidence), self._per_class(label, torch.ones_like(confidence))])
        if self.ddp:
            dist.all_reduce(sums)
        total, voxels = sums
        decay = (1 - 1 / (self.updates + 1)).clamp(max=self.decay)
        updated = decay * self.confidence + (1 - decay) * total / voxels.clamp(min=1)
        found = (voxels > 0) & total.isfinite()
        self.confidence.copy_(torch.where(found, updated, self.confidence))
        self.updates += found.float()

    @torch.no_grad()
    def forward(self, logits: Tensor, label: Tensor, confidence: Tensor) -> Tensor:
        """True where the confidence reaches the lower threshold of the voxel's two likeliest classes.

        Args:
            logits: (B, K, *spatial).
            label, confidence: what `pseudo_label` makes of them, (B, 1, *spatial) or, with regions, (B, K, *spatial).
        """
        thresholds = self.thresholds
        if self.regions:  # a voxel is inside or outside of each
            either = torch.minimum(thresholds[:-1], thresholds[-1])
            return confidence >= either.view(1, -1, *[1] * (label.ndim - 2))
        return confidence >= torch.minimum(thresholds[label], thresholds[runner_up(logits, label)])

    def _per_class(self, label: Tensor, values: Tensor) -> Tensor:
        """Sums of the values over the voxels of each class."""
        if self.regions:
            inside = (values * label).sum(dim=[0, *range(2, label.ndim)])
            return torch.cat([inside, (values * ~label).sum()[None]])
        return torch.stack([(values * (label == index)).sum() for index in range(len(self.confidence))])


@torch.no_grad()
def entropy(probability: Tensor, regions: bool = False) -> Tensor:
    """Entropy in nats: of the classes, (B, 1, *spatial), or of each region, (B, K, *spatial)."""
    if regions:
        return -(torch.xlogy(probability, probability) + torch.xlogy(1 - probability, 1 - probability))
    return -torch.xlogy(probability, probability).sum(dim=1, keepdim=True)


def entropy_limit(num_outputs: int, regions: bool, ramp: float) -> float:
    """UA-MT's limit, (.75 + .25 · ramp) times the largest entropy there is: ln C, and ln 2 for a region.

    The authors' code has ln 2, which is ln C of their two classes (Yu et al., MICCAI 2019).
    """
    return (0.75 + 0.25 * ramp) * math.log(2 if regions else num_outputs)
