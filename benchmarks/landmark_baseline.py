"""The published baseline of CL-Detection 2023, its recipe on the cephalograms that landmarks.py measures ours with.

python benchmarks/landmark_baseline.py --data DATA --labeled 150 --seeds 0 --size 128 --width 8 --images 3200

Written from its definition: images squeezed to a square, brightness 0 to 1; Gaussians of 8 of 512 pixels, cut off at
20, at the landmark's rounded place; a U-Net of four levels with batch normalization and a sigmoid; CenterNet's focal
loss; Adam with 1e-4, times .9 after every 10 epochs, batches of 8; half of the images mirrored by x → width - x, which
is one pixel off; the place of the highest pixel, or the mean of several, times the scale. The network is that of the
last step, as on our side, and not that of the lowest validation loss.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn
from torch.nn import functional

from landmark_data import print_rows
from landmarks import LIMITS, Cephalogram, read_cephalograms, read_image

PUBLISHED = 512  # pixels along each side, to which SIGMA and RADIUS belong
SIGMA, RADIUS = 8, 20
BATCH = 8


class UNet(nn.Module):
    """Four levels, each with two convolutions; `width` channels after the very first one (published: 32)."""

    def __init__(self, landmarks: int, width: int) -> None:
        super().__init__()
        channels = [2 * width * 2**level for level in range(4)]
        before = [1, *channels[:-1]]
        self.down = nn.ModuleList(block(old, new // 2, new) for old, new in zip(before, channels, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(old, old, 2, stride=2) for old in channels[:0:-1])
        self.join = nn.ModuleList(
            block(old + new, new, new) for old, new in zip(channels[:0:-1], channels[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(channels[0], landmarks, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, size, size) to heatmaps (B, L, size, size) within 0 to 1."""
        skips: list[Tensor] = []
        features = images
        for level, down in enumerate(self.down):
            features = down(functional.max_pool2d(features, 2) if level else features)
            skips.append(features)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            features = join(torch.cat([up(features), skip], 1))
        return self.last(features).sigmoid()


def block(before: int, between: int, after: int) -> nn.Sequential:
    """Two convolutions of 3×3, each with batch normalization and ReLU."""
    layers: list[nn.Module] = []
    for old, new in ((before, between), (between, after)):
        layers += [nn.Conv2d(old, new, 3, padding=1), nn.BatchNorm2d(new), nn.ReLU()]
    return nn.Sequential(*layers)


def squeeze(cephalogram: Cephalogram, size: int) -> tuple[Tensor, np.ndarray]:
    """The image as (1, size, size), and the pixels of the image per pixel of that, x and y."""
    pixels = sitk.GetArrayFromImage(read_image(cephalogram)).astype(np.float32) / 255
    image = functional.interpolate(torch.from_numpy(pixels)[None, None], (size, size), mode="bilinear", antialias=True)
    return image[0], np.array(pixels.shape[::-1]) / size


def mirror(image: Tensor, points: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """The baseline's mirroring, off by one pixel: x becomes width - x, where the pixel goes to width - 1 - x."""
    return image.flip(-1), np.stack([image.shape[-1] - points[:, 0], points[:, 1]], 1)


def heatmaps(points: np.ndarray, size: int) -> Tensor:
    """(L, size, size) of the points (L, 2), x and y."""
    sigma, radius = SIGMA * size / PUBLISHED, round(RADIUS * size / PUBLISHED)
    centres = torch.from_numpy(np.floor(points + 0.5)).float()
    x, y = (torch.arange(size) - centres[:, axis, None] for axis in (0, 1))
    near = (x.abs() <= radius)[:, None] & (y.abs() <= radius)[:, :, None]
    return torch.exp(-(x.square()[:, None] + y.square()[:, :, None]) / (2 * sigma**2)) * near


def focal_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """CenterNet's loss with logarithms of base 2; what is above .9 of a Gaussian counts as its peak."""
    predicted = predicted.clamp(1e-4, 1 - 1e-4)
    peak = target > 0.9
    losses = torch.where(
        peak,
        (1 - predicted).square() * predicted.log2(),
        predicted.square() * (1 - predicted).log2() * (1 - target) ** 4,
    )
    return -losses.sum() / peak.sum().clamp(min=1)


def highest(heatmap: np.ndarray) -> np.ndarray:
    """x and y of the highest pixel, the mean of them where there are several."""
    rows, columns = np.nonzero(heatmap == heatmap.max())
    return np.array([columns.mean(), rows.mean()])


def batches(count: int, images: int, random: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Epoch and indices of each batch, until `images` images were seen; every epoch has each image once."""
    seen, epoch = 0, 0
    while seen < images:
        order = random.permutation(count)
        for start in range(0, count, BATCH):
            batch = order[start : start + BATCH][: images - seen]
            if len(batch):
                yield epoch, batch
            seen += len(batch)
        epoch += 1


def train(cephalograms: Sequence[Cephalogram], args: argparse.Namespace, seed: int) -> UNet:
    """The network after its last step."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    squeezed = [squeeze(c, args.size) for c in cephalograms]
    points = [c.points / scale for c, (_, scale) in zip(cephalograms, squeezed, strict=True)]
    network = UNet(len(points[0]), args.width).to(args.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    for epoch, indices in batches(len(points), args.images, random):
        optimizer.param_groups[0]["lr"] = 1e-4 * 0.9 ** (epoch // 10)
        samples = [(squeezed[i][0], points[i]) for i in indices]
        samples = [mirror(*sample) if random.random() < 0.5 else sample for sample in samples]
        images = torch.stack([image for image, _ in samples]).to(args.device)
        targets = torch.stack([heatmaps(of_image, args.size) for _, of_image in samples]).to(args.device)
        loss = focal_loss(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def errors(network: UNet, cephalograms: Sequence[Cephalogram], args: argparse.Namespace) -> np.ndarray:
    """Distances to the mean of the readers in mm, (images, landmarks)."""
    network.eval()
    found = []
    for cephalogram in cephalograms:
        image, scale = squeeze(cephalogram, args.size)
        with torch.no_grad():
            maps = network(image[None].to(args.device))[0].cpu().numpy()
        points = np.stack([highest(heatmap) for heatmap in maps]) * scale
        found.append(np.linalg.norm(points - cephalogram.points, axis=1) * cephalogram.spacing)
    return np.stack(found)


def measure(args: argparse.Namespace, labeled: int, seed: int) -> dict[str, Any]:
    """A row of the table: trained on the first so many images, tested on all of test1."""
    network = train(read_cephalograms(args.data, "train")[:labeled], args, seed)
    found = errors(network, read_cephalograms(args.data, "test1"), args)
    rates = {f"SDR {limit} mm": float((found < float(limit)).mean()) for limit in LIMITS}
    return {"labeled": labeled, "seed": seed, "images seen": args.images, "MRE": float(found.mean()), **rates}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds ceph/")
    parser.add_argument("--labeled", nargs="+", type=int, default=[150], metavar="N", help="images with landmarks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S")
    parser.add_argument(
        "--size", type=int, default=128, help="pixels along each side, a multiple of 8 (published: 512)"
    )
    parser.add_argument("--width", type=int, default=8, help="channels of the first convolution (published: 32)")
    parser.add_argument("--images", type=int, default=3200, help="seen in training (published: up to 120000)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does it all and prints a table in Markdown."""
    args = parse(arguments)
    rows: list[dict[str, Any]] = []
    try:
        for labeled in args.labeled:
            rows += [measure(args, labeled, seed) for seed in args.seeds]
    finally:
        print_rows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
