"""How far two networks agree on each unlabeled case, gathered patch by patch while they train.

The score of a case is the mean over the classes of the Dice of both pseudo labels, each class over all patches of the
case together: 2·|A ∩ B| / (|A| + |B|). Classes that the first network predicts nowhere are skipped, and a case in which
it predicts no foreground at all scores 0, as in `nnunet_semi score --by networks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NEVER = -1


@torch.no_grad()
def overlaps(first: Tensor, second: Tensor, num_outputs: int) -> Tensor:
    """Voxels of |A|, |B| and |A ∩ B| of every sample and foreground class, (B, K, 3) int64.

    Args:
        first, second: pseudo labels, (B, 1, *spatial) classes or (B, R, *spatial) regions, which are bool.
        num_outputs: classes with background, or regions.
    """
    if first.dtype == torch.bool:
        pairs = [(first[:, index], second[:, index]) for index in range(num_outputs)]
    else:
        pairs = [(first[:, 0] == index, second[:, 0] == index) for index in range(1, num_outputs)]
    counts = [torch.stack([mask.flatten(1).sum(1) for mask in (a, b, a & b)], dim=1) for a, b in pairs]
    return torch.stack(counts, dim=1)


class CaseAgreement:
    """The scores of unlabeled cases, from what was seen of each since they were last settled.

    Attributes:
        cases: case ids, sorted.
        scores: of each; NaN for one that was never seen.
        seen: the number of the period in which each was last seen, or `NEVER`.
        patches: how many patches of each were seen in the current period.
        period: number of the current period.
    """

    def __init__(self, cases: Iterable[str], num_classes: int) -> None:
        self.cases = sorted(cases)
        self._index = {case: index for index, case in enumerate(self.cases)}
        self._counts = np.zeros((len(self.cases), num_classes, 3), dtype=np.int64)
        self.scores: NDArray[np.float64] = np.full(len(self.cases), np.nan)
        self.seen: NDArray[np.int64] = np.full(len(self.cases), NEVER)
        self.patches: NDArray[np.int64] = np.zeros(len(self.cases), dtype=np.int64)
        self.period = 0

    def add(self, cases: Sequence[str], counts: NDArray[np.int64]) -> None:
        """Adds what was seen of some patches: the case of each, and (B, K, 3) of `overlaps`."""
        places = [self._index[case] for case in cases]
        np.add.at(self._counts, places, counts)
        np.add.at(self.patches, places, 1)

    def unseen(self, least: int) -> dict[str, int]:
        """Case → patches that it lacks to `least` in this period, those not seen for longest first."""
        lacking = [(int(self.seen[i]), case, least - int(self.patches[i])) for i, case in enumerate(self.cases)]
        return {case: missing for _, case, missing in sorted(lacking) if missing > 0}

    def settle(self, few: int = 0) -> None:
        """Ends the period: the cases seen in it get new scores, the others keep theirs.

        Args:
            few: a case that has a score keeps it where so many patches or fewer were seen and none holds foreground of
                either network: patches at random places miss what is small, and an unlucky case would stay left out.
        """
        seen = self.patches > 0
        missed = (self.patches <= few) & ~self._counts.any((1, 2)) & ~np.isnan(self.scores)
        found = seen & ~missed
        self.scores[found] = dice_scores(self._counts[found])
        self.seen[seen] = self.period
        self._counts[:] = 0
        self.patches[:] = 0
        self.period += 1

    def most_certain(self, share: float, order: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """This share of the cases, at least one, with the highest scores; sorted by name.

        Cases that were never seen come last. Where scores tie, `order`, a permutation of the cases, decides.
        """
        count = max(1, math.ceil(share * len(self.cases) - 1e-9))
        ranked = np.lexsort((np.asarray(order), -np.nan_to_num(self.scores, nan=-1.0)))
        return sorted(self.cases[index] for index in ranked[:count])

    def state(self) -> dict[str, Any]:
        """Everything by case name, in plain types, for a checkpoint."""
        columns = {"scores": self.scores, "seen": self.seen, "patches": self.patches, "counts": self._counts}
        per_case = {name: dict(zip(self.cases, values.tolist(), strict=True)) for name, values in columns.items()}
        return {"period": self.period, **per_case}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave, for the cases that are still there; others are as if never seen."""
        self.period = state["period"]
        targets = {"scores": self.scores, "seen": self.seen, "patches": self.patches, "counts": self._counts}
        for name, target in targets.items():
            for case, value in state[name].items():
                if case in self._index:
                    target[self._index[case]] = value


def dice_scores(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The score of each case from its counts (N, K, 3) of |A|, |B| and |A ∩ B|."""
    first, second, both = np.moveaxis(counts.astype(np.float64), -1, 0)
    present = first > 0
    dice = np.where(present, 2 * both / np.maximum(first + second, 1), 0.0)
    return dice.sum(1) / np.maximum(present.sum(1), 1)
