"""The baseline that landmarks are compared with: its heatmaps, its flaws, its loss, and that it learns."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import landmark_baseline as baseline  # noqa: E402
from landmarks import Cephalogram  # noqa: E402


def test_a_heatmap_is_a_gaussian_at_the_rounded_place_and_ends_at_its_radius() -> None:
    (heatmap,) = baseline.heatmaps(np.array([[30.5, 10.2]]), 128)  # σ is 2 and the radius 5 at a quarter of the size
    assert heatmap.shape == (128, 128) and heatmap[10, 31] == heatmap.max() == 1
    assert heatmap[12, 34] == pytest.approx(math.exp(-(3**2 + 2**2) / (2 * 2**2)))
    assert heatmap[10, 36] > 0 and heatmap[10, 37] == 0 and int((heatmap > 0).sum()) == 11 * 11


def test_mirroring_is_off_by_one_pixel_as_published() -> None:
    image = torch.zeros(1, 4, 8)
    image[0, 1, 2] = 1
    mirrored, points = baseline.mirror(image, np.array([[2.0, 1.0]]))
    assert mirrored[0, 1, 5] == 1 and points.tolist() == [[6.0, 1.0]]


def test_several_highest_pixels_are_averaged() -> None:
    heatmap = np.zeros((5, 6))
    heatmap[1, 2] = heatmap[3, 4] = 0.5
    assert baseline.highest(heatmap).tolist() == [3.0, 2.0]


def test_the_loss_is_its_definition() -> None:
    predicted, target = torch.rand(2, 3, 4, generator=torch.manual_seed(0)), torch.tensor([0.95, 0.5, 0.0, 1.0])
    total, peaks = 0.0, 0
    for p, t in zip(predicted.flatten().tolist(), target.expand(2, 3, 4).flatten().tolist(), strict=True):
        if t > 0.9:
            total, peaks = total - (1 - p) ** 2 * math.log2(p), peaks + 1
        else:
            total -= (1 - t) ** 4 * p**2 * math.log2(1 - p)
    assert baseline.focal_loss(predicted, target.expand(2, 3, 4)).item() == pytest.approx(total / peaks, rel=1e-5)


def test_every_epoch_has_each_image_once_and_the_budget_is_kept() -> None:
    seen = [(epoch, index) for epoch, batch in baseline.batches(10, 25, np.random.default_rng(0)) for index in batch]
    assert len(seen) == 25 and Counter(epoch for epoch, _ in seen) == {0: 10, 1: 10, 2: 5}
    assert len(set(seen)) == 25


def test_it_learns_where_a_bright_spot_is(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    cephalograms = []
    for number in range(4):
        pixels, (x, y) = random.integers(0, 60, (40, 60)), random.integers(8, 32, 2)
        pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
        path = tmp_path / f"{number}.png"
        sitk.WriteImage(sitk.GetImageFromArray(pixels.astype(np.uint8)), path)
        point = np.array([[x, y]], dtype=float)
        cephalograms.append(Cephalogram(str(number), path, 0.5, (point, point)))
    args = argparse.Namespace(size=64, width=4, images=1200, device="cpu")
    before = baseline.errors(baseline.UNet(1, 4), cephalograms, args).mean()
    after = baseline.errors(baseline.train(cephalograms, args, seed=0), cephalograms, args)
    assert after.shape == (4, 1) and after.max() < 1.5 < before  # mm; a pixel of the squeezed image is .3 to .5
