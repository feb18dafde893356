"""Intensity views of a batch: parameters per sample and channel, arithmetic on the device of the images.

Own code, because no library fits: kornia has most of these transforms in 2D only, TorchIO and MONAI work sample by
sample (MONAI takes 12 s to import), and batchgeneratorsv2, which nnU-Net uses, loops over channels and reads every
decision back to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from nnunet_semi.perturbation import operators

Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class IntensityPerturbation:
    """Gives views that differ from their images by intensity only.

    Nothing in the image moves, except where nnU-Net's loss of resolution moves it by up to half a voxel along each
    axis; `low_resolution_linear` avoids that, for methods that learn positions.

    The defaults are the probabilities and ranges of `nnUNetTrainer.get_training_transforms`, in its order: noise,
    blur, brightness, contrast, low resolution, gamma of the inverted image, gamma. `*_p` is the probability per
    sample, `*_p_channel` that of a channel of such a sample; values are drawn per channel, and uniformly except for
    factors and exponents, which lie below 1 in half of the cases. Random numbers come from torch's default generator
    of the device, so that `torch.manual_seed` fixes the views. Nothing is read back from an accelerator.

    Args:
        noise_std: standard deviation, in image units (nnU-Net calls it a variance); shared by the channels of a sample.
        blur_sigma: in voxels, drawn for each axis.
        blur_axes: spatial axes that are blurred, counted from 0; None for all.
        brightness_factor: multiplies the image.
        contrast_factor: multiplies the distance to the mean; the range of values before is kept by clipping.
        low_resolution_zoom: size of the coarse grid over that of the image; linear up.
        low_resolution_linear: linear down too, instead of nnU-Net's nearest voxel.
        low_resolution_axes: spatial axes that lose resolution, counted from 0; None for all.
        gamma_exponent: acts on the image scaled to [0, 1]; mean and standard deviation are kept.
        masked_channels: channels in which voxels that are exactly 0 stay 0 (`use_mask_for_norm` of nnU-Net's plans).

    Raises:
        ValueError: a probability outside [0, 1] or a range that is empty or outside what its parameter allows.

    Example:
        >>> perturb = IntensityPerturbation.strong()
        >>> view = perturb(torch.rand(2, 1, 64, 64))
    """

    noise_p: float = 0.1
    noise_std: Range = (0.0, 0.1)
    blur_p: float = 0.2
    blur_p_channel: float = 0.5
    blur_sigma: Range = (0.5, 1.0)
    blur_axes: tuple[int, ...] | None = None
    brightness_p: float = 0.15
    brightness_factor: Range = (0.75, 1.25)
    contrast_p: float = 0.15
    contrast_factor: Range = (0.75, 1.25)
    low_resolution_p: float = 0.25
    low_resolution_p_channel: float = 0.5
    low_resolution_zoom: Range = (0.5, 1.0)
    low_resolution_linear: bool = False
    low_resolution_axes: tuple[int, ...] | None = None
    gamma_inverted_p: float = 0.1
    gamma_p: float = 0.3
    gamma_exponent: Range = (0.7, 1.5)
    masked_channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if "_p" in field.name and not 0 <= value <= 1:
                raise ValueError(f"{field.name} is {value!r}; expected a probability from 0 to 1")
        for name, (lowest, highest) in _ALLOWED.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise ValueError(f"{name} is {(low, high)}; expected (low, high) within {(lowest, highest)}")

    @classmethod
    def nnunet(cls, *, anisotropic: bool = False, masked_channels: tuple[int, ...] = ()) -> IntensityPerturbation:
        """nnU-Net's own intensity augmentation; `anisotropic` where nnU-Net augments 3D patches slice by slice.

        nnU-Net then keeps the resolution of the first axis but blurs it all the same, and so does this preset.
        """
        axes = (1, 2) if anisotropic else None
        return cls(low_resolution_axes=axes, masked_channels=masked_channels)

    @classmethod
    def strong(cls, *, anisotropic: bool = False, masked_channels: tuple[int, ...] = ()) -> IntensityPerturbation:
        """Strong views for consistency: nnU-Net's transforms, wider, about as frequent as in UniMatch.

        `anisotropic` leaves the first axis of 3D patches its sharpness and its resolution.
        """
        axes = (1, 2) if anisotropic else None
        return cls(
            noise_p=0.4,
            noise_std=(0.0, 0.2),
            blur_p=0.5,
            blur_p_channel=1.0,
            blur_sigma=(0.5, 2.0),
            blur_axes=axes,
            brightness_p=0.5,
            brightness_factor=(0.5, 1.5),
            contrast_p=0.5,
            contrast_factor=(0.5, 1.75),
            low_resolution_p=0.4,
            low_resolution_p_channel=1.0,
            low_resolution_zoom=(0.35, 1.0),
            low_resolution_axes=axes,
            gamma_inverted_p=0.25,
            gamma_p=0.5,
            gamma_exponent=(0.5, 2.0),
            masked_channels=masked_channels,
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, num_image_channels: int | None = None) -> Tensor:
        """One view of every image, in new memory and without a gradient.

        Args:
            images: float32, (B, C, H, W) or (B, C, D, H, W); not changed. An empty batch gives an empty batch.
            num_image_channels: only the first so many channels are images; later ones (the previous stage of a
                cascade, one-hot) are copied unchanged. None for all.

        Raises:
            ValueError: another type or shape, or an axis or channel that the images do not have.
        """
        batch_size, channels = self._check(images, num_image_channels)
        draws = _Draws(batch_size, channels, images.device)
        with torch.autocast(images.device.type, enabled=False):
            planes = images[:, :channels].clone(memory_format=torch.contiguous_format).flatten(0, 1)
            planes = self._noise(planes, draws)
            planes = self._blur(planes, draws)
            planes = self._brightness_and_contrast(planes, draws)
            planes = self._low_resolution(planes, draws)
            planes = self._gamma(planes, draws)
        view = planes.unflatten(0, (batch_size, channels))
        for channel in self.masked_channels:
            view[:, channel].masked_fill_(images[:, channel] == 0, 0)
        return view if channels == images.shape[1] else torch.cat([view, images[:, channels:]], dim=1)

    def _noise(self, planes: Tensor, draws: _Draws) -> Tensor:
        if self.noise_p == 0:
            return planes
        std = draws.uniform(self.noise_std, shared_by_channels=True)
        return _where(draws.chosen(self.noise_p), planes, operators.add_noise, std)

    def _blur(self, planes: Tensor, draws: _Draws) -> Tensor:
        if self.blur_p * self.blur_p_channel == 0:
            return planes
        chosen = draws.chosen(self.blur_p, self.blur_p_channel)
        sigmas = [draws.uniform(self.blur_sigma) for _ in planes.shape[1:]]
        radius = int(4 * self.blur_sigma[1] + 0.5)
        blur = partial(operators.blur, axes=_axes(self.blur_axes, planes), radius=radius)
        return _where(chosen, planes, blur, torch.stack(sigmas, dim=1))

    def _brightness_and_contrast(self, planes: Tensor, draws: _Draws) -> Tensor:
        if self.brightness_p > 0:
            factor = draws.factor(self.brightness_factor)
            factor = torch.where(draws.chosen(self.brightness_p), factor, 1.0)
            planes = planes.mul_(operators.spread(factor, planes))
        if self.contrast_p > 0:
            factor = draws.factor(self.contrast_factor)
            planes = _where(draws.chosen(self.contrast_p), planes, operators.change_contrast, factor)
        return planes

    def _low_resolution(self, planes: Tensor, draws: _Draws) -> Tensor:
        if self.low_resolution_p * self.low_resolution_p_channel == 0:
            return planes
        chosen = draws.chosen(self.low_resolution_p, self.low_resolution_p_channel)
        axes = _axes(self.low_resolution_axes, planes)
        lower = partial(operators.lower_resolution, axes=axes, linear=self.low_resolution_linear)
        return _where(chosen, planes, lower, draws.uniform(self.low_resolution_zoom))

    def _gamma(self, planes: Tensor, draws: _Draws) -> Tensor:
        if self.gamma_inverted_p > 0:
            exponent = draws.factor(self.gamma_exponent)
            planes = _where(draws.chosen(self.gamma_inverted_p), planes, operators.change_gamma_inverted, exponent)
        if self.gamma_p > 0:
            planes = _where(
                draws.chosen(self.gamma_p), planes, operators.change_gamma, draws.factor(self.gamma_exponent)
            )
        return planes

    def _check(self, images: Tensor, num_image_channels: int | None) -> tuple[int, int]:
        """Batch size and number of image channels; what does not fit raises ValueError."""
        if images.dtype != torch.float32 or images.ndim not in (4, 5):
            got = f"{images.dtype} of shape {tuple(images.shape)}"
            raise ValueError(
                f"images are {got}; expected float32, (B, C, H, W) or (B, C, D, H, W): call .float() before"
            )
        channels = images.shape[1] if num_image_channels is None else num_image_channels
        if not max(self.masked_channels, default=-1) < channels <= images.shape[1]:
            raise ValueError(
                f"images have {images.shape[1]} channels, num_image_channels is {channels} and masked_channels "
                f"{self.masked_channels}; expected masked channels among the image channels, and those among all"
            )
        for axes in (self.blur_axes, self.low_resolution_axes):
            if any(not 0 <= axis < images.ndim - 2 for axis in axes or ()):
                raise ValueError(f"axes are {axes} for {images.ndim - 2}D images; expected 0 to {images.ndim - 3}")
        return images.shape[0], channels


_ALLOWED: dict[str, Range] = {
    "noise_std": (0.0, float("inf")),
    "blur_sigma": (0.1, 64.0),
    "brightness_factor": (0.0, float("inf")),
    "contrast_factor": (0.0, float("inf")),
    "low_resolution_zoom": (0.01, 1.0),
    "gamma_exponent": (0.01, 100.0),
}


class _Draws:
    """Random parameters for every plane (one channel of one sample), each of shape (B * C,)."""

    def __init__(self, batch_size: int, channels: int, device: torch.device) -> None:
        self.shape = (batch_size, channels)
        self.device = device

    def chosen(self, p: float, p_channel: float = 1.0) -> Tensor:
        """True with probability p for a sample, and p_channel for each channel of such a sample."""
        chosen = self._rand(1) < p
        if p_channel < 1:
            chosen = chosen & (self._rand(self.shape[1]) < p_channel)
        return chosen.expand(self.shape).flatten()

    def uniform(self, limits: Range, shared_by_channels: bool = False) -> Tensor:
        low, high = limits
        value = low + (high - low) * self._rand(1 if shared_by_channels else self.shape[1])
        return value.expand(self.shape).flatten()

    def factor(self, limits: Range) -> Tensor:
        """Uniform below 1 in half of the cases and above in the other half, as `BGContrast` of batchgeneratorsv2."""
        low, high = limits
        if low >= 1 or high <= 1:
            return self.uniform(limits)
        is_below = self.uniform((0.0, 1.0)) < 0.5
        return torch.where(is_below, self.uniform((low, 1.0)), self.uniform((1.0, high)))

    def _rand(self, channels: int) -> Tensor:
        return torch.rand(self.shape[0], channels, device=self.device)


def _reading_is_free(device: torch.device) -> bool:
    """Whether the host can read a decision without waiting for an accelerator to catch up."""
    return device.type == "cpu"


def _where(chosen: Tensor, planes: Tensor, transform: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """The planes, those chosen replaced by `transform(planes, *parameters)`, where each plane has its parameters.

    On the CPU only chosen planes are computed; elsewhere all are, which costs less than asking which.
    """
    if not _reading_is_free(planes.device):
        return torch.where(operators.spread(chosen, planes), transform(planes, *parameters), planes)
    index = chosen.nonzero().flatten()
    if index.numel() > 0:
        planes[index] = transform(planes[index], *(parameter[index] for parameter in parameters))
    return planes


def _axes(axes: tuple[int, ...] | None, planes: Tensor) -> tuple[int, ...]:
    return tuple(range(planes.ndim - 1)) if axes is None else axes
