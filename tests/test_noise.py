"""The input noise of Mean Teacher."""

from __future__ import annotations

import torch

from nnunet_semi.perturbation.noise import add_clamped_noise


def test_noise_is_a_clamped_gaussian():
    torch.manual_seed(0)
    images = torch.rand(2, 1, 300, 300)
    noise = add_clamped_noise(images) - images
    assert noise.abs().max() <= 0.2 + 1e-6
    assert abs(noise.mean()) < 0.002
    inner = noise[noise.abs() < 0.1].numel() / noise.numel()
    assert abs(inner - 0.6827) < 0.006  # one standard deviation on each side, 4 standard errors
    assert abs((noise.abs() > 0.1999).float().mean().item() - 0.0455) < 0.003


def test_masked_zeros_and_further_channels_stay():
    images = torch.rand(2, 3, 8, 8)
    images[:, 1, :4] = 0
    noisy = add_clamped_noise(images, num_image_channels=2, masked_channels=(1,))
    assert torch.equal(noisy[:, 2], images[:, 2])
    assert torch.equal(noisy[:, 1, :4], images[:, 1, :4])
    assert (noisy[:, 0] != images[:, 0]).all()
    assert (noisy[:, 1, 4:] != images[:, 1, 4:]).all()
