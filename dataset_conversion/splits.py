"""Seeded splits of cases, in the form of nnU-Net's splits_final.json."""

from __future__ import annotations

import random
from collections.abc import Sequence

Split = dict[str, list[str]]


def k_folds(names: Sequence[str], folds: int = 5, seed: int = 12345) -> list[Split] | None:
    """Splits in which every case is in the validation part once; None where there are fewer cases than folds.

    The validation parts differ by at most one case: 50 names give five times 40 + 10. Order does not matter.
    """
    if len(names) < folds:
        return None
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    parts = [set(shuffled[start::folds]) for start in range(folds)]
    return [{"train": sorted(set(shuffled) - part), "val": sorted(part)} for part in parts]


def shuffled_parts(count: int, sizes: Sequence[int], seed: int = 2023) -> list[list[int]]:
    """The numbers 1 to `count` shuffled and cut: `random.seed(seed); random.shuffle(list(range(1, count + 1)))`.

    Args:
        count: how many numbers.
        sizes: of the parts where they sum up to `count`; otherwise the parts are in proportion, the first rounded up.
        seed: of the shuffle.
    """
    numbers = list(range(1, count + 1))
    random.Random(seed).shuffle(numbers)
    if sum(sizes) != count:
        later = [size * count // sum(sizes) for size in sizes[1:]]
        sizes = [count - sum(later), *later]
    ends = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    return [numbers[start:end] for start, end in zip(ends, ends[1:], strict=False)]
