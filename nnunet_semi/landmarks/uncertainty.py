"""What several predictions of the same landmarks say together: where, how surely there, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FAR = 3.0  # times the median distance (at least σ) to the central prediction, beyond which one is left out
LEAST_PEAK = 0.05


@dataclass(frozen=True)
class Consensus:
    """The landmarks of a case, of all predictions together.

    Attributes:
        world: (L, dim) in mm.
        peak: (L,) mean of the heights of the heatmaps, 0 to 1.
        width: (L,) standard deviation in mm of the peak that was fitted, mean of the predictions.
        spread: (L,) root mean square in mm of the distances of all predictions to `world`.
    """

    world: Floats
    peak: Floats
    width: Floats
    spread: Floats

    @property
    def scale(self) -> Floats:
        """(L,) in mm: how far off a landmark may be, up to a factor that `calibration` finds.

        √(width² / peak + spread²): a hesitant network makes peaks that are wide and low, and folds then disagree.
        """
        return np.sqrt(self.width**2 / np.clip(self.peak, LEAST_PEAK, 1.0) + self.spread**2)


def agree(world: Floats, peak: Floats, width: Floats, sigma: float) -> Consensus:
    """Joins the predictions of folds and mirrored images.

    The point is the mean of the predictions, weighted by their peaks, without those that are far from the central one:
    a fold that took a wrong tooth does not pull the others half the way. Central is the prediction from which the
    others, weighted alike, are the least distance away, where all that is far counts the same. Of two that do not
    agree it is the one with the higher peak.

    Args:
        world: (M, L, dim) in mm.
        peak: (M, L) height of the heatmap.
        width: (M, L) standard deviation of the fitted peak in mm.
        sigma: with which heatmaps were rendered, in mm; predictions that are this close are never left out.
    """
    weights = np.clip(peak, LEAST_PEAK, None)
    apart = np.linalg.norm(world[:, None] - world, axis=-1)  # (M, M, L)
    central = (weights * np.minimum(apart, 3 * FAR * sigma)).sum(axis=1).argmin(axis=0)
    distance = np.take_along_axis(apart, central[None, None], axis=0)[0]
    usual = np.sort(distance, axis=0)[(len(distance) - 1) // 2]
    weights = weights * (distance <= FAR * np.maximum(usual, sigma))
    point = (world * weights[..., None]).sum(axis=0) / weights.sum(axis=0)[:, None]
    spread = np.sqrt((np.linalg.norm(world - point, axis=-1) ** 2).mean(axis=0))
    return Consensus(point, peak.mean(axis=0), width.mean(axis=0), spread)
