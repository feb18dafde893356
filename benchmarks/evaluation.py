"""Times NSD and HD95 on a case of 512 × 512 × 100 voxels with 13 classes, here and with libraries for it.

Every row runs in a process of its own: CPU seconds of that process for all classes (one thread), the memory that it
took beyond the two label maps, and the largest difference of NSD and of HD95 to surface-distance. Libraries that are
not installed are left out. Memory is read from /proc, so that this runs on Linux only.

    pip install surface-distance edt   # for the other rows

Example:
    python benchmarks/evaluation.py
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

SHAPE, SPACING = (100, 512, 512), (2.5, 0.8, 0.8)  # z, y, x
TOLERANCE = 2.0
ORGANS = [  # centre and radii in voxels, about as large as the organs of FLARE22
    ((55, 230, 170), (30, 105, 95)),
    ((40, 300, 180), (22, 38, 35)),
    ((60, 290, 390), (20, 60, 40)),
    ((50, 240, 280), (8, 30, 75)),
    ((50, 300, 265), (48, 14, 14)),
    ((50, 290, 225), (48, 15, 17)),
    ((58, 280, 205), (6, 12, 10)),
    ((58, 290, 320), (6, 12, 10)),
    ((45, 200, 190), (12, 25, 22)),
    ((85, 300, 280), (14, 12, 14)),
    ((62, 210, 340), (20, 60, 70)),
    ((42, 240, 220), (14, 35, 25)),
    ((40, 300, 360), (22, 38, 35)),
]
PREDICTIONS = {"a good prediction": 0.5, "a poor prediction": 1.5}  # how much they deviate
Scores = list[tuple[float, float]]  # NSD and HD95 of each class


def label_map(seed: int, deviation: float = 0.0) -> np.ndarray:
    """Organs that touch where they meet.

    Args:
        seed: of what deviates.
        deviation: of positions (as a multiple of 0.5, 1.5 and 1.5 voxels) and of the border (of 3 % of the radius).
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    for label, (centre, radii) in enumerate(ORGANS, 1):
        middle = np.array(centre) + deviation * rng.normal(0, (0.5, 1.5, 1.5))
        grid = np.ogrid[tuple(slice(0, size) for size in SHAPE)]
        scaled = [(axis - m) / r for axis, m, r in zip(grid, middle, radii, strict=True)]
        phases = rng.uniform(0, 6, 3)
        waves = 0.03 * deviation * sum(np.sin(5 * axis + phase) for axis, phase in zip(scaled, phases, strict=True))
        labels[sum(axis**2 for axis in scaled) < (1 + waves) ** 2] = label
    return labels


def by_nnunet_semi(reference: np.ndarray, prediction: np.ndarray) -> Scores:
    from nnunet_semi.evaluation.crop import CroppedPair

    pair = CroppedPair(reference, prediction, SPACING)
    distances = (pair.distances(label) for label in range(1, len(ORGANS) + 1))
    return [(found.nsd(TOLERANCE), found.hausdorff(95)) for found in distances]


def by_surface_distance(reference: np.ndarray, prediction: np.ndarray) -> Scores:
    """As its README says; it uses names that NumPy 2 removed, which are put back."""
    np.Inf, np.NaN = np.inf, np.nan  # type: ignore[attr-defined]  # noqa: NPY201
    import surface_distance as library

    scores = []
    for label in range(1, len(ORGANS) + 1):
        found = library.compute_surface_distances(reference == label, prediction == label, SPACING)
        nsd = library.compute_surface_dice_at_tolerance(found, TOLERANCE)
        scores.append((float(nsd), float(library.compute_robust_hausdorff(found, 95))))
    return scores


def by_distance_maps(transform: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Scores]:
    """The surfaces of this project in the same boxes, with distances from maps instead of a KD-tree."""

    def scores(reference: np.ndarray, prediction: np.ndarray) -> Scores:
        from nnunet_semi.evaluation.crop import CroppedPair
        from nnunet_semi.evaluation.surface import Surface, SurfaceDistances, surface_areas, surface_codes

        pair, table, found = CroppedPair(reference, prediction, SPACING), surface_areas(SPACING), []
        for label in range(1, len(ORGANS) + 1):
            codes = [surface_codes(mask) for mask in pair.masks(label)]
            on = [(code > 0) & (code < 255) for code in codes]
            distances = [transform(~on[1 - side])[on[side]] for side in (0, 1)]
            surfaces = [Surface(distances[side], table[codes[side][on[side]]]) for side in (0, 1)]
            both = SurfaceDistances(*surfaces)
            found.append((both.nsd(TOLERANCE), both.hausdorff(95)))
        return found

    return scores


def by_scipy_maps(reference: np.ndarray, prediction: np.ndarray) -> Scores:
    from scipy.ndimage import distance_transform_edt

    return by_distance_maps(lambda outside: distance_transform_edt(outside, sampling=SPACING))(reference, prediction)


def by_edt_maps(reference: np.ndarray, prediction: np.ndarray) -> Scores:
    import edt

    return by_distance_maps(lambda outside: edt.edt(outside, anisotropy=SPACING, parallel=1))(reference, prediction)


def by_itk(reference: np.ndarray, prediction: np.ndarray) -> Scores:
    """HD95 only, after SimpleITK's example: from voxel on the border to voxel on the border, each with one vote."""
    import SimpleITK as sitk

    from nnunet_semi.evaluation.crop import CroppedPair

    pair, scores = CroppedPair(reference, prediction, SPACING), []
    for label in range(1, len(ORGANS) + 1):
        images = [sitk.GetImageFromArray(np.pad(mask.astype(np.uint8), 1)) for mask in pair.masks(label)]
        for image in images:
            image.SetSpacing(SPACING[::-1])
        options = {"squaredDistance": False, "useImageSpacing": True}
        maps = [sitk.GetArrayFromImage(sitk.Abs(sitk.SignedMaurerDistanceMap(i, **options))) for i in images]
        borders = [sitk.GetArrayFromImage(sitk.LabelContour(image)) > 0 for image in images]
        scores.append((math.nan, max(float(np.percentile(maps[1 - side][borders[side]], 95)) for side in (0, 1))))
    return scores


METHODS: dict[str, tuple[str, Callable[..., Scores]]] = {  # name → (what it needs, function)
    "surface-distance": ("surface_distance", by_surface_distance),
    "nnunet_semi": ("nnunet_semi", by_nnunet_semi),
    "boxes of nnunet_semi, maps of scipy": ("scipy", by_scipy_maps),
    "boxes of nnunet_semi, maps of edt": ("edt", by_edt_maps),
    "boxes of nnunet_semi, ITK": ("SimpleITK", by_itk),
}


def measure(name: str, folder: str) -> tuple[float, float, Scores]:
    """CPU seconds, MB and scores; to be called in a fresh process, since what a process took at most stays known."""
    reference, prediction = (np.load(Path(folder, f"{which}.npy")) for which in ("reference", "prediction"))
    method = METHODS[name][1]
    small = np.zeros((2, 20, 20, 20), np.uint8)
    small[:, 4:9, 4:9, 4:9] = np.arange(1, 6)
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        method(*small)  # imports and tables; some libraries do not take classes that are empty
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    before, started = _memory("VmRSS"), time.process_time()
    scores = method(reference, prediction)
    return time.process_time() - started, _memory("VmHWM") - before, scores


def _memory(which: str) -> float:
    """MB of this process, VmRSS now or VmHWM at most; getrusage would begin with the most of its parent."""
    return int(Path("/proc/self/status").read_text().partition(f"{which}:")[2].split()[0]) / 2**10


def worst(scores: Scores, others: Scores, part: int) -> float:
    """The largest difference between two lists of scores."""
    return max(abs(one[part] - other[part]) for one, other in zip(scores, others, strict=True))


def run(name: str, folder: str, repeats: int) -> tuple[float, float, Scores] | None:
    """The fastest of several runs, None if the library is missing or fails."""
    if importlib.util.find_spec(METHODS[name][0]) is None:
        print(f"{name}: not installed", file=sys.stderr)
        return None
    runs = []
    for _ in range(repeats):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            runs.append(fresh.submit(measure, name, folder).result())
    return min(runs)


def show(title: str, found: dict[str, tuple[float, float, Scores]]) -> None:
    """Prints a table; times and differences are to surface-distance."""
    seconds_then, _, expected = found.get("surface-distance") or found["nnunet_semi"]
    nsd, hd95 = np.mean(expected, axis=0)
    print(f"\n{title}: mean NSD {nsd:.3f}, mean HD95 {hd95:.2f} mm")
    print(f"{'':38s}{'CPU s':>8s}{'faster':>8s}{'MB':>6s}{'NSD off by':>12s}{'HD95 off by':>13s}")
    for name, (seconds, memory, scores) in found.items():
        differences = f"{worst(scores, expected, 0):12.1e}{worst(scores, expected, 1):13.1e}"
        print(f"{name:38s}{seconds:8.2f}{seconds_then / seconds:8.1f}{memory:6.0f}{differences}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest is shown (default: 3)")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "reference.npy"), label_map(0))
        for title, deviation in PREDICTIONS.items():
            np.save(Path(folder, "prediction.npy"), label_map(1, deviation))
            runs = {name: run(name, folder, repeats) for name in METHODS}
            show(title, {name: found for name, found in runs.items() if found is not None})


if __name__ == "__main__":
    main()
