"""The rules by which challenges score, to the digit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_semi.evaluation.crop import CroppedPair
from nnunet_semi.evaluation.overlap import JointCounts, Label, Overlap, Scores, joint_counts
from nnunet_semi.evaluation.surface import region_hausdorff
from nnunet_semi.labelmaps.files import LabelMap

Score = Callable[[LabelMap, LabelMap, Sequence[float], JointCounts], Scores]
Overall = Callable[[Sequence[Scores], Mapping[str, float], float | None], dict[str, float]]


@dataclass(frozen=True)
class Challenge:
    """How one challenge scores.

    Attributes:
        names: the classes and regions that are scored.
        means: metric → the classes over whose means the challenge averages.
        score: reference, prediction, spacing, counts → the scores of a case.
        overall: the scores of all cases, the averages of `means`, milliseconds per image if known → what is published.
        binary: whether masks are read as "above 0", of any depth and number of channels.
        in_pixels: whether distances are in pixels whatever the file says.
        volumes: whether label maps have to be 3D.
    """

    names: Mapping[Label, str]
    means: Mapping[str, tuple[Label, ...]]
    score: Score
    overall: Overall
    binary: bool = False
    in_pixels: bool = False
    volumes: bool = False


# --- FUGC 2025: cervix in transvaginal ultrasound ---

LIPS: Label = (1, 2)
FUGC_SMOOTH = 1e-6
FUGC_DICE = (0.526495, 0.902611)  # of the worst and of the best team
FUGC_HD = (137.4622, 38.88497)
FUGC_TIME = (837.006, 268.266)  # milliseconds


def _score_fugc(reference: LabelMap, prediction: LabelMap, spacing: Sequence[float], counts: JointCounts) -> Scores:
    """Dice of each lip, Hausdorff distance of each and of both as one; of pixel centres, in pixels."""
    pair = CroppedPair(reference, prediction, (1.0,) * reference.ndim)
    scores: Scores = {}
    for label in (1, 2, LIPS):
        overlap = counts.overlap(label)
        distance = region_hausdorff(*pair.masks(label), pair.spacing)
        scores[label] = overlap.as_nnunet() | {"Dice": overlap.dice(FUGC_SMOOTH), "HD": distance}
    return scores


def fugc_score(dice: float, hd: float, milliseconds: float | None = None) -> dict[str, float]:
    """The three parts of the FUGC score, each 40 for the worst and 100 for the best team, and their weighted sum.

    Args:
        dice: mean over both lips and all images.
        hd: mean in pixels over the three Hausdorff distances and all images.
        milliseconds: run time per image on the CPU; without it there is no total.
    """
    parts = {"S_DSC": _between(dice, *FUGC_DICE), "S_HD": _between(hd, *FUGC_HD)}
    if milliseconds is not None:
        parts["S_RT"] = min(100.0, _between(milliseconds, *FUGC_TIME))
        parts["score"] = 0.4 * parts["S_DSC"] + 0.4 * parts["S_HD"] + 0.2 * parts["S_RT"]
    return parts


def _between(value: float, worst: float, best: float) -> float:
    return 40 + 60 * (value - worst) / (best - worst)


def _overall_fugc(cases: Sequence[Scores], means: Mapping[str, float], milliseconds: float | None) -> dict[str, float]:
    return {"DSC": means["Dice"], "HD": means["HD"], **fugc_score(means["Dice"], means["HD"], milliseconds)}


# --- FLARE22: organs in abdominal CT ---

FLARE_ORGANS = {  # label: (name, tolerance in mm)
    1: ("liver", 5.0),
    2: ("right kidney", 3.0),
    3: ("spleen", 3.0),
    4: ("pancreas", 5.0),
    5: ("aorta", 2.0),
    6: ("inferior vena cava", 2.0),
    7: ("right adrenal gland", 2.0),
    8: ("left adrenal gland", 2.0),
    9: ("gallbladder", 2.0),
    10: ("esophagus", 3.0),
    11: ("stomach", 5.0),
    12: ("duodenum", 7.0),
    13: ("left kidney", 3.0),
}
FLARE_TUBES = (5, 6, 10)  # scored only in the slices in which the reference has them
FLARE_LEAST_DICE = 0.2  # below it the NSD is 0


def _score_flare(reference: LabelMap, prediction: LabelMap, spacing: Sequence[float], counts: JointCounts) -> Scores:
    """Dice and NSD of each organ, rounded to four digits."""
    pair = CroppedPair(reference, prediction, spacing)
    scores: Scores = {}
    for label in FLARE_ORGANS:
        overlap = counts.overlap(label)
        dice, nsd = _flare_organ(pair, label, overlap)
        scores[label] = overlap.as_nnunet() | {"Dice": float(np.round(dice, 4)), "NSD": float(np.round(nsd, 4))}
    return scores


def _flare_organ(pair: CroppedPair, label: int, overlap: Overlap) -> tuple[float, float]:
    if not overlap.n_ref:
        return (0.0, 0.0) if overlap.n_pred else (1.0, 1.0)
    slices: tuple[slice, ...] = ()
    if label in FLARE_TUBES:
        slices = (_flare_slices(pair.reference, label),)
        overlap = joint_counts(pair.reference[slices], pair.prediction[slices]).overlap(label)
    dice = overlap.dice()
    if dice < FLARE_LEAST_DICE:
        return dice, 0.0
    return dice, pair.distances(label, slices).nsd(FLARE_ORGANS[label][1])


def _flare_slices(reference: LabelMap, label: int) -> slice:
    """From the first slice of an organ to the last, which the official script leaves out; one slice leaves none."""
    found = np.flatnonzero((reference == label).any(axis=(1, 2)))
    return slice(int(found[0]), int(found[-1]))


def _overall_flare(cases: Sequence[Scores], means: Mapping[str, float], milliseconds: float | None) -> dict[str, float]:
    return {"DSC": means["Dice"], "NSD": means["NSD"]}


# --- AICUP 2022 STAS: tumour spread in lung pathology ---


def _score_aicup(reference: LabelMap, prediction: LabelMap, spacing: Sequence[float], counts: JointCounts) -> Scores:
    return {1: counts.overlap(1).as_nnunet()}


def _overall_aicup(cases: Sequence[Scores], means: Mapping[str, float], milliseconds: float | None) -> dict[str, float]:
    """Dice in the three ways in which the organisers may mean it."""
    single = [scores[1] for scores in cases]
    voxels = sum(values["n_ref"] + values["n_pred"] for values in single)
    filled = [1.0 if math.isnan(values["Dice"]) else values["Dice"] for values in single]
    return {
        "Dice of all pixels": 2 * sum(values["TP"] for values in single) / voxels if voxels else math.nan,
        "mean Dice": means["Dice"],
        "mean Dice, 1 where both are empty": sum(filled) / len(filled),
    }


CHALLENGES = {
    "fugc2025": Challenge(
        {1: "anterior lip", 2: "posterior lip", LIPS: "both lips"},
        {"Dice": (1, 2), "HD": (1, 2, LIPS)},
        _score_fugc,
        _overall_fugc,
        in_pixels=True,
    ),
    "flare22": Challenge(
        {label: name for label, (name, _) in FLARE_ORGANS.items()},
        {"Dice": tuple(FLARE_ORGANS), "NSD": tuple(FLARE_ORGANS)},
        _score_flare,
        _overall_flare,
        volumes=True,
    ),
    "aicup-stas": Challenge(
        {1: "tumour spread"}, {"Dice": (1,)}, _score_aicup, _overall_aicup, binary=True, in_pixels=True
    ),
}
