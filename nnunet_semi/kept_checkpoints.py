"""Checkpoints of mid-training that stay: after which epochs, under which names, and what is in them.

They hold what prediction needs, no optimizer and no second network: `nnUNetv2_predict -chk checkpoint_036.pth` works,
and each takes half the space of checkpoint_final.pth, a quarter with CPS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_semi.errors import WrongUse

# what nnUNetPredictor reads, and the epoch, for people
PREDICTION_KEYS = (
    "network_weights",
    "init_args",
    "trainer_name",
    "inference_allowed_mirroring_axes",
    "current_epoch",
)


def kept_name(fraction: float) -> str:
    """The file for a fraction of training: checkpoint_036.pth for .36, in percent.

    Raises:
        WrongUse: training has no such part.
    """
    percent = round(100 * fraction)
    if not 0 < percent < 100:
        raise WrongUse(f"got {fraction} in keep_checkpoints; expected fractions of training between 0 and 1")
    return f"checkpoint_{percent:03d}.pth"


def kept_after(fractions: Sequence[float], num_epochs: int) -> dict[str, int]:
    """File name → number of epochs after which it is written: the first at which the fraction is reached."""
    return {kept_name(fraction): max(1, math.ceil(fraction * num_epochs - 1e-6)) for fraction in fractions}


def for_prediction(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of nnU-Net's checkpoint that prediction needs."""
    return {key: checkpoint[key] for key in PREDICTION_KEYS}
