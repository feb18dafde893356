"""How far the pseudo labels of a whole training may be trusted: networks that teach themselves can unlearn a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist


class Trust(nn.Module):
    """A factor in [0, 1] for the weight of pseudo labels, the product of two.

    Held: pseudo labels feed on themselves, and where background spreads in them it spreads in the network. With f the
    share of voxels that are not background, averaged over some 50 steps, and F the largest that its average over some
    500 steps has been, but no more than labeled patches hold,

        held = clip((f / F - .5) / .25, 0, 1)

    which falls at once and rises by 1 / 1000 per step at most, since labeled images bring back slowly what was lost.
    All classes together, since where a network learns them one after the other, the first gives up voxels to the next;
    and no more than labeled patches hold, since what is too large at first may shrink to its size. Structures that few
    patches hold come and go by chance, so f is taken three standard errors larger than it is, and F three smaller.

    Counted: a threshold of confidence that leaves out a class lets the images teach that the others are everywhere.
    With k(c) the part of the voxels of class c that counts, averaged over some 50 steps,

        counted = min(1, min over c of k(c) / .1)

    The averages are even at first, like `MovingAverage`; F is known after 50 steps.

    Args:
        num_outputs: classes, the first one background, or regions.
        regions: outputs are regions.
        ddp: take the shares over the batches of all processes.
    """

    HORIZON, LONG_HORIZON, RETURN = 50, 500, 1000  # steps
    NONE, FULL = 0.5, 0.75  # f / F at which pseudo labels count not at all, and fully
    ERRORS = 3  # standard errors
    ENOUGH = 0.1  # of the voxels of a class

    recent: Tensor
    long: Tensor
    largest: Tensor
    held: Tensor
    steps: Tensor

    def __init__(self, num_outputs: int, regions: bool = False, ddp: bool = False) -> None:
        super().__init__()
        self.background = 0 if regions else 1
        self.ddp = ddp
        self.register_buffer("recent", torch.zeros(2, num_outputs))  # shares, and what of them counts
        self.register_buffer("long", torch.zeros(3))  # what is not background: pseudo labels, its square, labels
        for name, value in (("largest", 0.0), ("held", 1.0), ("steps", 0.0)):
            self.register_buffer(name, torch.tensor(value))

    @torch.no_grad()
    def update(self, shares: Tensor, kept: Tensor | None, labeled: Tensor) -> None:
        """Learn from the pseudo labels of a step.

        Args:
            shares: of the voxels that each class takes, (K,).
            kept: of the voxels that each class takes and that count, (K,); None if all do.
            labeled: of the voxels that each class takes in labeled patches, (K,).
        """
        seen = torch.stack([shares, shares if kept is None else kept, labeled]).float()
        if self.ddp:
            dist.all_reduce(seen)
            seen /= dist.get_world_size()
        self.steps += 1
        self.recent.lerp_(seen[:2], 1 / self.steps.clamp(max=self.HORIZON))
        foreground, _, labels = seen[:, self.background :].sum(1)
        self.long.lerp_(torch.stack([foreground, foreground**2, labels]), 1 / self.steps.clamp(max=self.LONG_HORIZON))
        average, squares, labels = self.long
        deviation = torch.where(average > 0, (squares - average**2).clamp(min=0).sqrt() / average, 0)
        lower = average * (1 - deviation * self._errors(self.LONG_HORIZON)).clamp(min=0)
        self.largest.copy_(torch.maximum(self.largest, (self.steps >= self.HORIZON) * lower))
        upper = self.recent[0, self.background :].sum() * (1 + deviation * self._errors(self.HORIZON))
        most = torch.minimum(self.largest, labels)
        left = torch.where(most > 0, upper / most, 1)
        held = ((left - self.NONE) / (self.FULL - self.NONE)).clamp(0, 1)
        self.held.copy_(torch.minimum(held, self.held + 1 / self.RETURN))

    def forward(self) -> Tensor:
        """The factor, ()."""
        shares, kept = self.recent
        counted = torch.where(shares > 0, kept / shares, 1).amin()
        return self.held * (counted / self.ENOUGH).clamp(max=1)

    def _errors(self, horizon: int) -> Tensor:
        """The standard errors that a moving average is given, in standard deviations of a step."""
        return self.ERRORS * self.steps.clamp(max=2 * horizon).rsqrt()
