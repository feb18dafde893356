"""The teacher as a moving average of its student, on torch's own averaged model."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors: TypeAlias = tuple[Tensor, ...] | list[Tensor]


class MovingAverage(AveragedModel):
    """Exponential moving average of a network, buffers included; without gradient and always in evaluation mode.

    The n-th update, counted from 0, is `average = d · average + (1 - d) · network` with d = min(1 - 1 / (n + 1), alpha)
    (Tarvainen and Valpola, NeurIPS 2017): the first one copies the network, and short trainings are averaged evenly.

    Args:
        network: a bare network, not wrapped by DistributedDataParallel or torch.compile; it is copied.
        alpha: largest decay.

    Example:
        >>> teacher = MovingAverage(network, alpha=0.99)
        >>> optimizer.step()
        >>> teacher.update_parameters(network)
        >>> logits = teacher(images)
    """

    def __init__(self, network: nn.Module, alpha: float) -> None:
        super().__init__(network, use_buffers=True)
        self.alpha = alpha
        self.multi_avg_fn = self._average
        self.requires_grad_(False)
        self.eval()

    @property
    def updates(self) -> int:
        """The number of updates so far; stays on the CPU, so that reading it waits for no accelerator."""
        return int(self.n_averaged)

    @property
    def decay(self) -> float:
        """d of the next update."""
        return min(1 - 1 / (self.updates + 1), self.alpha)

    def restore(self, weights: dict[str, Tensor], updates: int) -> None:
        """Go on from the weights and the number of updates of an earlier average."""
        self.module.load_state_dict(weights)
        self.n_averaged.fill_(updates)

    def train(self, mode: bool = True) -> MovingAverage:
        """Evaluation mode, whatever is asked for: dropout and batch statistics are the student's."""
        return super().train(False)

    def _average(self, averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        get_ema_multi_avg_fn(self.decay)(averages, values, count)
