"""From raw uncertainties to millimetres and probabilities that hold, learned from validation cases.

The radius is split conformal prediction (Vovk et al. 2005; Lei et al. 2018): if the errors of the cases to come are
exchangeable with those of the validation cases, error / scale is at most its ⌈(n + 1)·.9⌉-th smallest value there in at
least 90 % of them, whatever the scale. The probability is a logistic regression on the logit of the peak (Platt 1999).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import chi2

from nnunet_semi import landmark_files
from nnunet_semi.errors import UserError
from nnunet_semi.landmarks.heatmaps import BLOB_LEVEL
from nnunet_semi.landmarks.uncertainty import Consensus
from nnunet_semi.raw import load_json

Floats = NDArray[np.float64]

COVERAGE = 0.9
ENOUGH_PER_LANDMARK = 20  # values, from which on a landmark has a factor of its own
ENOUGH_ABSENT = 5  # landmarks that are missing, and as many present, from which on probabilities are learned
SAMPLES = "landmark_calibration"  # key in summary.json
COLUMNS = ("error_mm", "peak", "width", "present")  # of it, cases × landmarks
PRESENT = 0.5  # probability from which on a landmark is said to be there


@dataclass(frozen=True)
class Calibration:
    """How raw numbers become honest ones.

    Attributes:
        factors: (L,) radius of the region / scale.
        slope: of the logistic curve over the logit of the peak.
        offset: of the curve.
        threshold: the probability below which a landmark counts as missing; 0 where the validation cases say nothing
            about missing landmarks.
        cases: how many validation cases it rests on; 0 for none.
    """

    factors: Floats
    slope: float
    offset: float
    threshold: float
    cases: int = 0

    def radius(self, consensus: Consensus) -> Floats:
        """(L,) in mm: of the region around each landmark that holds the true one in 90 of 100 cases."""
        return self.factors * consensus.scale

    def presence(self, consensus: Consensus) -> Floats:
        """(L,) probability that each landmark is in the image."""
        return expit(self.slope * _logit(consensus.peak) + self.offset)


def uncalibrated(num_landmarks: int, dim: int) -> Calibration:
    """Without validation cases: Gaussian errors as wide as the peak, .5 where stock nnU-Net begins to draw a blob.

    Nothing is known of missing landmarks then, so none is called missing, as with validation cases that miss none.
    """
    factor = math.sqrt(chi2.ppf(COVERAGE, dim))
    return Calibration(np.full(num_landmarks, factor), 1.0, -float(logit(BLOB_LEVEL)), 0.0)


def calibrate(errors: Floats, scales: Floats, peaks: Floats, present: NDArray[np.bool_], dim: int) -> Calibration:
    """Learns from validation cases.

    Args:
        errors: (N, L) in mm, NaN where there is no reference.
        scales: (N, L) of `Consensus.scale`.
        peaks: (N, L) of the heatmaps.
        present: (N, L) whether the reference has the landmark.
        dim: of the images.
    """
    default = uncalibrated(errors.shape[1], dim)
    ratios = errors / scales
    pooled = conformal_factor(ratios[~np.isnan(ratios)])
    factors = []
    for number, column in enumerate(ratios.T):
        own = column[~np.isnan(column)]
        factor = conformal_factor(own) if len(own) >= ENOUGH_PER_LANDMARK else pooled
        factors.append(default.factors[number] if factor is None else factor)
    slope, offset, threshold = default.slope, default.offset, default.threshold
    if min(int((~present).sum()), int(present.sum())) >= ENOUGH_ABSENT:
        slope, offset = _platt(_logit(peaks).ravel(), present.ravel())
        threshold = PRESENT
    return Calibration(np.array(factors), slope, offset, threshold, len(errors))


def conformal_factor(ratios: Floats) -> float | None:
    """The ⌈(n + 1)·.9⌉-th smallest of the ratios; None if there are too few for that."""
    rank = math.ceil((len(ratios) + 1) * COVERAGE)
    return float(np.sort(ratios)[rank - 1]) if 0 < rank <= len(ratios) else None


def _platt(values: Floats, present: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of the logistic curve, with Platt's targets: a separable sample does not drive it to 0 and 1."""
    ups, downs = int(present.sum()), int((~present).sum())
    target = np.where(present, (ups + 1) / (ups + 2), 1 / (downs + 2))

    def loss(parameters: Floats) -> float:
        score = parameters[0] * values + parameters[1]
        return float(np.mean(np.logaddexp(0, score) - target * score))

    found = minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B", bounds=[(0.0, None), (None, None)]).x
    return float(found[0]), float(found[1])


def _logit(peak: Floats) -> Floats:
    return logit(np.clip(peak, 1e-4, 1 - 1e-4))


def samples(cases: Iterable[tuple[landmark_files.Landmarks, landmark_files.Landmarks]], epoch: int) -> dict[str, Any]:
    """What `from_validation` learns from, for the validation's summary.json, so that it travels with the model.

    Args:
        cases: reference and prediction, with the details `peak` and `width` (in units of σ).
        epoch: of the network that predicts; it tells the final checkpoint from the best one.
    """
    found: dict[str, Any] = {"names": [], "epoch": epoch} | {name: [] for name in COLUMNS}
    for reference, prediction in cases:
        found["names"] = list(reference.names)
        error = np.linalg.norm(prediction.world - reference.world, axis=1)
        found["error_mm"].append([None if math.isnan(value) else float(value) for value in error])
        for name in ("peak", "width"):
            found[name].append(np.nan_to_num(prediction.details[name]).tolist())
        found["present"].append((~np.isnan(reference.voxel).any(axis=1)).tolist())
    return found


def from_validation(
    summaries: Sequence[Path], epochs: Sequence[int], names: Sequence[str], sigma: float, dim: int
) -> tuple[Calibration | None, str]:
    """Learns from what a training's final validation left, and says in a sentence why there is none.

    Every case was predicted by the fold that has not seen it, by one network, so that the spread of an ensemble comes
    on top of these scales: the regions of ensembles are on the safe side.

    Args:
        summaries: `validation/summary.json` of every fold.
        epochs: of the checkpoints that predict.
        names: of the landmarks.
        sigma: of the heatmaps, in mm.
        dim: of the images.
    """
    tables = []
    for path, epoch in zip(summaries, epochs, strict=True):
        try:
            found = load_json(path)["nnunet_semi"][SAMPLES]
            table = np.array([found[name] for name in COLUMNS], float)  # (4, cases, landmarks), None becomes NaN
            if found["names"] != list(names) or table.shape[2:] != (len(names),):
                raise UserError("of another model")
            if found["epoch"] != epoch:
                return None, (
                    f"{path} is about the network after epoch {found['epoch']}, and the checkpoint has epoch {epoch}; "
                    "choose the checkpoint that was validated with -chk"
                )
        except (UserError, LookupError, TypeError, ValueError):
            return None, (
                f"{path} does not tell how far off the model's landmarks were in validation; write it by "
                "`nnUNetv2_train … --val`"
            )
        tables.append(table)
    errors, peaks, widths, present = np.concatenate(tables, axis=1)
    scales = Consensus(np.empty(0), peaks, widths * sigma, np.zeros_like(peaks)).scale
    return calibrate(errors, scales, peaks, present > 0, dim), ""
