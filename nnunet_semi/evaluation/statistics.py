"""How sure a mean over cases is: standard deviation, bootstrap confidence interval, and paired comparison.

Everything takes a table of cases × classes in which NaN stands for undefined values, which are left out.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

RESAMPLES, SEED, CONFIDENCE = 10_000, 0, 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Statistic:
    """What a number of values have in common.

    Attributes:
        mean: their mean; NaN if there is none.
        sd: standard deviation with n - 1; NaN for fewer than two.
        low: lower end of the 95 % confidence interval of the mean (bootstrap over cases, percentiles); likewise.
        high: its upper end.
        cases: how many cases have a value.
    """

    mean: float
    sd: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class Difference(Statistic):
    """Of the paired differences between two predictions, in the cases where both have a value.

    Attributes:
        p: two-sided, of the Wilcoxon signed-rank test; 1 if all are 0, NaN without pairs.
        first: mean of the first prediction in these cases.
        second: mean of the second.
    """

    p: float
    first: float
    second: float


def summarise(values: Floats) -> list[Statistic]:
    """One statistic for each class.

    Args:
        values: cases × classes.
    """
    low, high = interval(resampled_means(values))
    return [_statistic(column, low[number], high[number]) for number, column in enumerate(values.T)]


def summarise_mean_of_classes(values: Floats) -> Statistic:
    """Of the mean over classes of their means over cases, nnU-Net's foreground_mean.

    Unlike there, a class without any value does not make it undefined. The standard deviation is that of the mean over
    classes in each case.
    """
    low, high = interval(_mean(resampled_means(values), axis=1)[:, None])
    statistic = _statistic(_mean(values, axis=1), low[0], high[0])
    mean = float(_mean(_mean(values, axis=0), axis=0))
    return Statistic(mean, statistic.sd, statistic.low, statistic.high, statistic.cases)


def summarise_pooled(values: Floats) -> Statistic:
    """Of all values together, whatever class they belong to.

    The interval is still that of a bootstrap over cases, and so NaN where fewer than two have a value.
    """
    known = ~np.isnan(values)
    cases = int(known.any(axis=1).sum())
    low, high = interval(_resampled(np.nan_to_num(values).sum(axis=1)[:, None], known.sum(axis=1)[:, None]))
    pooled = _statistic(values.ravel(), *(low[0], high[0]) if cases > 1 else (math.nan, math.nan))
    return replace(pooled, cases=cases)


def compare(first: Floats, second: Floats) -> list[Difference]:
    """Second minus first, case by case, for each class and at last for the mean over the classes of each case.

    Args:
        first: cases × classes.
        second: the same cases and classes of another prediction.
    """
    both = np.where(np.isnan(first) | np.isnan(second), np.nan, 1.0)
    first, second = (np.column_stack([table * both, _mean(table * both, axis=1)]) for table in (first, second))
    differences = second - first
    return [
        Difference(**vars(statistic), p=signed_rank(column), first=float(mean_of_first), second=float(mean_of_second))
        for statistic, column, mean_of_first, mean_of_second in zip(
            summarise(differences), differences.T, _mean(first, axis=0), _mean(second, axis=0), strict=True
        )
    ]


def signed_rank(differences: Floats) -> float:
    """p of the two-sided Wilcoxon signed-rank test (zeros left out); 1 if all are 0, NaN without values."""
    from scipy.stats import wilcoxon  # takes a second to import

    known = differences[~np.isnan(differences)]
    if not len(known):
        return math.nan
    return float(wilcoxon(known).pvalue) if known.any() else 1.0


def resampled_means(values: Floats) -> Floats:
    """The means of the classes in 10 000 samples of as many cases, drawn with replacement and a fixed seed.

    Cases are drawn, not values, so that the classes of a case stay together.

    Returns:
        Samples × classes; NaN where a sample has no value.
    """
    return _resampled(np.nan_to_num(values), ~np.isnan(values))


def _resampled(sums: Floats, counts: NDArray) -> Floats:
    """Sums over counts (both cases × classes) of the cases that were drawn."""
    generator = np.random.default_rng(SEED)
    cases, means = len(sums), []
    counts = counts.astype(float)
    step = max(1, 1_000_000 // max(1, cases))  # samples at a time: 8 MB of counts
    for start in range(0, RESAMPLES if cases else 0, step):
        drawn = generator.multinomial(cases, np.full(cases, 1 / cases), size=min(step, RESAMPLES - start))
        with np.errstate(invalid="ignore"):
            means.append(drawn @ sums / (drawn @ counts))
    return np.concatenate(means) if means else np.full((1, sums.shape[1]), np.nan)


def interval(samples: Floats) -> tuple[Floats, Floats]:
    """The ends of the 95 % interval of each column."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a class without values
        ends = np.nanpercentile(samples, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)], axis=0)
    return ends[0], ends[1]


def _statistic(column: Floats, low: float, high: float) -> Statistic:
    known = column[~np.isnan(column)]
    if len(known) < 2:
        return Statistic(float(known.mean()) if len(known) else math.nan, math.nan, math.nan, math.nan, len(known))
    return Statistic(float(known.mean()), float(known.std(ddof=1)), float(low), float(high), len(known))


def _mean(values: Floats, axis: int) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN where there is nothing to average
        return np.nanmean(values, axis=axis)
