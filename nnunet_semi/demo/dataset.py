"""A made dataset that looks like images: an organ with a wall and a cavity, lookalikes, shading, speckle and noise.

What makes it hard is what makes real images hard: from case to case the wall goes from much darker than the tissue
around it to hardly darker, the cavity from bright to barely brighter than its wall, shading, speckle and noise from
little to much, and the many lookalikes are as bright as a cavity or as dark as a wall. Whoever labels a few images
begins with clear ones: the labeled images are of the clearest third, unlabeled and test images of every quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from nnunet_semi.storage import atomic_path, write_json

NAME = "Dataset990_SemiDemo"
LABELS = {"background": 0, "wall": 1, "cavity": 2}
SIZE = 64  # pixels along each side
HARDEST = {"Tr": 0.3, "Un": 1.0, "Ts": 1.0}  # nnU-Net's endings, and how hard images may be: 0 is clear, 1 is poor


def write_dataset(raw: Path, seed: int, counts: Mapping[str, int]) -> Path:
    """Writes a dataset in nnU-Net's layout and gives its folder; the same arguments give the same files.

    Args:
        raw: nnUNet_raw, in which Dataset990_SemiDemo is made.
        seed: of all cases; a case depends on it, its kind and its number only.
        counts: how many cases of each kind, "Tr", "Un" and "Ts". Unlabeled cases get no label file at all.
    """
    folder = raw / NAME
    for number, (kind, hardest) in enumerate(HARDEST.items()):
        for index in range(counts[kind]):
            image, label = draw_case(np.random.default_rng([seed, number, index]), hardest)
            case = f"{kind.lower()}_{index:03d}"
            _write(folder / f"images{kind}" / f"{case}_0000.png", image)
            if kind != "Un":
                _write(folder / f"labels{kind}" / f"{case}.png", label)
    channels = {"channel_names": {"0": "made"}, "labels": LABELS, "file_ending": ".png"}
    write_json(folder / "dataset.json", {**channels, "numTraining": counts["Tr"]})
    return folder


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def draw_case(random: np.random.Generator, hardest: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """One image and its label, both (64, 64) uint8; the image lies within 1 to 255, the label holds all of LABELS.

    How hard the image is, is drawn evenly from 0 to `hardest`.
    """
    hard = random.uniform(0, hardest)
    wall = -0.5 + 0.3 * hard + random.uniform(-0.05, 0.05)  # brightness against the tissue, whose own is 0 ± .1 to .2
    cavity = wall + 0.75 - 0.35 * hard + random.uniform(-0.05, 0.05)
    centre = random.uniform(0.3, 0.7, 2) * SIZE
    radius = random.uniform(0.17, 0.27) * SIZE
    outer = _distance(random, centre, radius, random.uniform(1.0, 1.4), 0.12)
    inner = _distance(
        random,
        centre + random.normal(0, 0.06, 2) * radius,
        radius * random.uniform(0.5, 0.7),
        random.uniform(1, 1.3),
        0.12,
    )
    organ, hole = outer < 1, (inner < 1) & (outer < 0.9)
    grain, strength = random.uniform(3, 6), random.uniform(0.08, 0.2)
    image = strength * (_texture(random, grain) + 0.5 * _texture(random, grain / 2))
    _add_lookalikes(random, image, ndimage.binary_dilation(organ, iterations=2), wall, cavity)
    image[organ] = wall + 0.5 * image[organ]
    image[hole] = cavity + 0.1 * _texture(random, 2)[hole]
    label = np.zeros((SIZE, SIZE), dtype=np.uint8)
    label[organ] = LABELS["wall"]
    label[hole] = LABELS["cavity"]
    return _acquire(random, image, hard), label


def _distance(
    random: np.random.Generator, centre: np.ndarray, radius: float, aspect: float, roughness: float
) -> np.ndarray:
    """How far each pixel lies from `centre`, in units of a wavy, turned ellipse: below 1 inside."""
    angle = random.uniform(0, np.pi)
    y, x = np.mgrid[:SIZE, :SIZE] - centre[:, None, None]
    u = (np.cos(angle) * x + np.sin(angle) * y) / np.sqrt(aspect)
    v = (np.cos(angle) * y - np.sin(angle) * x) * np.sqrt(aspect)
    waves = 1.0
    for frequency in range(2, 6):
        waves = waves + roughness / frequency * random.normal() * np.cos(
            frequency * np.arctan2(v, u) + random.uniform(0, 2 * np.pi)
        )
    return np.hypot(u, v) / (radius * waves)


def _texture(random: np.random.Generator, grain: float) -> np.ndarray:
    """Smooth noise with mean 0 and standard deviation 1; `grain` is its scale in pixels."""
    noise = ndimage.gaussian_filter(random.standard_normal((SIZE, SIZE)), grain, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _add_lookalikes(
    random: np.random.Generator, image: np.ndarray, kept_free: np.ndarray, wall: float, cavity: float
) -> None:
    """Adds blobs as bright as the cavity but without a wall, as dark as the wall but without a cavity, and others."""
    for _ in range(random.integers(4, 8)):
        distance = _distance(
            random, random.uniform(0, 1, 2) * SIZE, random.uniform(0.06, 0.16) * SIZE, random.uniform(1, 2.2), 0.2
        )
        brightness = random.choice(
            [cavity * random.uniform(0.7, 1.2), wall * random.uniform(0.7, 1.3), random.uniform(-0.6, 0.6)]
        )
        image[(distance < 1) & ~kept_free] += brightness


def _acquire(random: np.random.Generator, image: np.ndarray, hard: float) -> np.ndarray:
    """What a scanner adds: blur, speckle, shading, noise, and a contrast of its own; uint8 within 1 to 255."""
    image = ndimage.gaussian_filter(image, random.uniform(0.3, 0.8))
    image = image * (1 + (0.03 + 0.2 * hard) * random.standard_normal(image.shape))
    image = image + (0.1 + 0.5 * hard) * _texture(random, SIZE / 3)
    image = image * np.exp(random.uniform(0, 0.25) * _texture(random, SIZE / 3))
    image = ndimage.gaussian_filter(image, 0.5) + (0.02 + 0.1 * hard) * random.standard_normal(image.shape)
    low, high = np.percentile(image, [0.5, 99.5])
    contrast = np.clip((image - low) / (high - low), 0, 1) ** random.uniform(0.7, 1.4)
    return np.round(1 + 254 * contrast).astype(np.uint8)
