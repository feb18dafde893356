"""What an intensity view does to planes (N, *spatial), each plane with its own parameter: arithmetic, no randomness.

Every function returns new memory and needs no more than two further copies of the planes. Blur and loss of resolution
are linear and separable: a small matrix per plane and axis, so that one batched product serves planes of different
sigma or zoom. On the CPU that is up to ten times faster than a grouped conv3d, and it reflects at the border of axes
that are shorter than the kernel, where torch's padding raises.
"""

from __future__ import annotations

import torch
from torch import Tensor

SPREAD_FLOOR = 1e-7


def spread(values: Tensor, planes: Tensor) -> Tensor:
    """(N,) as (N, 1, 1) or (N, 1, 1, 1), to meet the planes."""
    return values.view(-1, *[1] * (planes.ndim - 1))


def add_noise(planes: Tensor, std: Tensor) -> Tensor:
    """Gaussian noise of standard deviation `std`, (N,)."""
    return torch.randn_like(planes).mul_(spread(std, planes)).add_(planes)


def change_contrast(planes: Tensor, factor: Tensor) -> Tensor:
    """(x - mean) * factor + mean, clipped to the range of x; `factor` is (N,)."""
    flat = planes.flatten(1)
    mean, low, high = flat.mean(1, keepdim=True), flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return (flat - mean).mul_(factor[:, None]).add_(mean).clamp_(low, high).view_as(planes)


def change_gamma(planes: Tensor, exponent: Tensor) -> Tensor:
    """x scaled to [0, 1] to the power of `exponent`, (N,), with the mean and standard deviation of x.

    A constant plane stays as it is.
    """
    flat = planes.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    mean, deviation = _mean_and_deviation(flat)
    curved = (flat - low).div_((high - low).clamp(min=SPREAD_FLOOR)).pow_(exponent[:, None])
    # nnU-Net goes back to the old range in between, which keeping mean and deviation would undo.
    curved_mean, curved_deviation = _mean_and_deviation(curved)
    scale = deviation / curved_deviation.clamp(min=SPREAD_FLOOR)
    return curved.sub_(curved_mean).mul_(scale).add_(mean).view_as(planes)


def change_gamma_inverted(planes: Tensor, exponent: Tensor) -> Tensor:
    """`change_gamma` of the negative image, turned back: bends the bright end instead of the dark one."""
    return change_gamma(-planes, exponent).neg_()


def blur(planes: Tensor, sigmas: Tensor, axes: tuple[int, ...], radius: int) -> Tensor:
    """Gaussian blur along the spatial `axes`; `sigmas`, (N, number of all spatial axes), in voxels."""
    for axis in axes:
        planes = along(axis, gaussian_matrices(sigmas[:, axis], planes.shape[axis + 1], radius), planes)
    return planes


def lower_resolution(planes: Tensor, zoom: Tensor, axes: tuple[int, ...], linear: bool = False) -> Tensor:
    """The planes seen on a grid that is coarser along the spatial `axes` by `zoom`, (N,), interpolated back.

    What lies in them moves by up to half a voxel, unless `linear`; see `low_resolution_matrices`.
    """
    for axis in axes:
        planes = along(axis, low_resolution_matrices(zoom, planes.shape[axis + 1], linear), planes)
    return planes


def _mean_and_deviation(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row; on one CPU thread the norm is 50 times faster than `var_mean`."""
    mean = flat.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(flat - mean, dim=1, keepdim=True)
    return mean, norm / max(flat.shape[1], 1) ** 0.5


def along(axis: int, matrices: Tensor, planes: Tensor) -> Tensor:
    """Multiplies each plane, (N, *spatial), by its matrix, (N, n, n), along one spatial axis of size n."""
    shape = planes.shape
    if axis == planes.ndim - 2:
        return torch.bmm(planes.flatten(1, -2), matrices.mT).view(shape)
    before, after = shape[1 : axis + 1].numel(), shape[axis + 2 :].numel()
    columns = planes.reshape(shape[0], before, shape[axis + 1], after)
    return torch.matmul(matrices[:, None], columns).view(shape)


def gaussian_matrices(sigmas: Tensor, size: int, radius: int) -> Tensor:
    """Matrices that blur an axis, reflected at the border without repeating the edge (mode "mirror" of scipy).

    Args:
        sigmas: (N,), in voxels.
        size: number of voxels n of the axis.
        radius: the kernel covers 2 * radius + 1 voxels.

    Returns:
        (N, n, n); rows sum to 1.
    """
    device = sigmas.device
    offsets = torch.arange(-radius, radius + 1, device=device)
    kernels = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    # A reflected axis repeats itself after `period` voxels: wrap the kernel, then add each voxel and its mirror image.
    period = max(2 * (size - 1), 1)
    wrapped = kernels @ (offsets[:, None] % period == torch.arange(period, device=device)).to(kernels.dtype)
    # Views instead of an index per entry, which takes longer than the product: windows[k, j] is wrapped[k + j].
    windows = torch.cat([wrapped, wrapped], dim=1).unfold(1, size, 1)
    itself, mirrored = windows[:, size - 1 : 2 * size - 1].flip(1), windows[:, :size]
    voxels = torch.arange(size, device=device)
    own_mirror = (voxels == 0) | (voxels == size - 1)
    return itself.add_(mirrored).mul_(torch.where(own_mirror, 0.5, 1.0))


def low_resolution_matrices(zooms: Tensor, size: int, linear: bool = False) -> Tensor:
    """Matrices that sample an axis on a coarser grid and interpolate linearly back.

    The same as `interpolate(mode="nearest-exact")` down, as nnU-Net, and `interpolate(mode="linear")` up. The nearest
    voxel can be half a voxel off: at zoom .5 it always is, to the same side.

    Args:
        zooms: (N,), at most 1; the coarse grid has round(zoom * n) voxels, at least 1.
        size: number of voxels n of the axis.
        linear: `interpolate(mode="linear")` down too, so that a dot of σ ≥ 3 voxels moves by less than .04 of one.

    Returns:
        (N, n, n); rows sum to 1.
    """
    coarse_size = (zooms * size).round().clamp(min=1)[:, None]
    voxels = torch.arange(size, device=zooms.device)
    matrices = zooms.new_zeros(len(zooms), size, size)
    for coarse, weight in _neighbours((voxels + 0.5) * coarse_size / size - 0.5, coarse_size - 1):
        source = (coarse + 0.5) * size / coarse_size
        taken = _neighbours(source - 0.5, torch.full_like(coarse_size, size - 1)) if linear else [(source, 1.0)]
        for voxel, share in taken:
            matrices.scatter_add_(2, voxel.long()[..., None], (weight * share)[..., None])
    return matrices


def _neighbours(positions: Tensor, last: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The voxels below and above each position on an axis that ends at `last`, with their weights."""
    positions = positions.clamp(min=0)
    lower = positions.floor()
    return [(lower, 1 - positions + lower), (torch.minimum(lower + 1, last), positions - lower)]
