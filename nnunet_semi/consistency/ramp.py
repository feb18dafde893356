"""How the weight of the unsupervised loss grows with the fraction of training done."""

from __future__ import annotations

import math


def sigmoid_rampup(progress: float, length: float = 1.0) -> float:
    """The Gaussian ramp exp(-5 (1 - t)²) of Laine and Aila (ICLR 2017), with t = progress / length, at most 1.

    Args:
        progress: fraction of training done, in [0, 1].
        length: fraction of training after which the weight is full; 0 gives the full weight from the start.
    """
    remaining = 1 - min(1.0, progress / length) if length > 0 else 0.0
    return math.exp(-5 * remaining**2)
