"""Feature dropout: whole channels of what a U-Net's encoder hands to its decoder, of some samples of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from nnunet_semi.errors import WrongUse

Masks: TypeAlias = list[Tensor]
"""For each stage of an encoder, what each channel of each sample is multiplied by: (B, channels of the stage)."""


class FeatureDropout:
    """Multiplies the channels of all feature maps that an encoder gives, while `applied`; otherwise does nothing.

    A forward hook on `network.encoder` does it, so that the pass still goes through DistributedDataParallel and
    torch.compile. The latter sees only hooks that exist when it first runs: make this object before the first pass.
    What it does not touch is the network's own business: no weights, no names, no random numbers in the pass.

    Args:
        network: a bare network with an encoder that gives a list of feature maps, as PlainConvUNet and
            ResidualEncoderUNet of dynamic-network-architectures have one.

    Raises:
        WrongUse: it has none.

    Example:
        >>> dropout = FeatureDropout(network)
        >>> with dropout.applied(dropout.undisturbed(2), dropout.independent(3)):
        ...     outputs = network(images)  # 5 images, the last 3 of them with half of their features
    """

    def __init__(self, network: nn.Module) -> None:
        encoder: Any = getattr(network, "encoder", None)
        if not getattr(encoder, "return_skips", False):
            raise WrongUse(
                f"{type(network).__name__} has no encoder that gives a list of feature maps, which feature dropout "
                "needs; choose plans with a U-Net (PlainConvUNet, ResidualEncoderUNet), or a trainer that leaves "
                "features alone, such as nnUNetTrainerFixMatch or nnUNetTrainerCPS"
            )
        self.channels: Sequence[int] = encoder.output_channels
        self.device = next(encoder.parameters()).device
        self.masks: Masks | None = None
        encoder.register_forward_hook(self._multiply)

    def undisturbed(self, count: int) -> Masks:
        """Masks of ones for `count` samples."""
        return [torch.ones(count, channels, device=self.device) for channels in self.channels]

    def independent(self, count: int, p: float = 0.5) -> Masks:
        """Channel dropout: each channel is 0 with probability p and 1 / (1 - p) else (UniMatch, CVPR 2023)."""
        return [self._kept(count, channels, p) / (1 - p) for channels in self.channels]

    def complementary(self, count: int) -> tuple[Masks, Masks]:
        """Masks m1 = 2 · Bernoulli(.5) and m2 = 2 - m1 for two views of the same samples (UniMatch V2, 2024).

        A random half of the samples keeps m1 = m2 = 1 at all stages; of an odd number, one more every other time.
        """
        odd_one = count % 2 and int(torch.rand(()) < 0.5)
        kept = torch.randperm(count, device=self.device)[: count // 2 + odd_one]
        first = [2 * self._kept(count, channels, 0.5) for channels in self.channels]
        for mask in first:
            mask[kept] = 1
        return first, [2 - mask for mask in first]

    @contextmanager
    def applied(self, *parts: Masks) -> Iterator[None]:
        """Disturb what passes; `parts` are the masks of the batch's consecutive parts, which together are all of it."""
        self.masks = [torch.cat(stage) for stage in zip(*parts, strict=True)]
        try:
            yield
        finally:
            self.masks = None

    def _kept(self, count: int, channels: int, p: float) -> Tensor:
        return (torch.rand(count, channels, device=self.device) >= p).float()

    def _multiply(self, encoder: nn.Module, inputs: Any, features: list[Tensor]) -> list[Tensor]:
        if self.masks is None:
            return features
        return [_times(feature, mask) for feature, mask in zip(features, self.masks, strict=True)]


def _times(feature: Tensor, mask: Tensor) -> Tensor:
    return feature * mask.to(feature.dtype).view(*mask.shape, *[1] * (feature.ndim - 2))
