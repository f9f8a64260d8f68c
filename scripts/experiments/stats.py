"""Statistics of runs: means, their differences and intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from scipy.stats import t

FEWEST = 3
"""Of fewer values on a side no interval of a difference is given."""


@dataclass(frozen=True)
class Estimate:
    """A mean, the variance of that mean (NaN: of one value), degrees of freedom, and a count."""

    mean: float
    variance: float
    freedom: float
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval by Student's t; None of one value."""
        if math.isnan(self.variance):
            return None
        margin = float(t.ppf(0.975, self.freedom)) * math.sqrt(self.variance)
        return self.mean - margin, self.mean + margin

    def chance_below(self, mark: float) -> float | None:
        """The p-value of the mean's being at or below `mark`; None without a variance."""
        if math.isnan(self.variance):
            return None
        if self.variance == 0:
            return float(self.mean <= mark)
        return float(t.sf((self.mean - mark) / math.sqrt(self.variance), self.freedom))

    def chance_equal(self) -> float | None:
        """The two-sided p-value of the mean's being 0; None without a variance."""
        if math.isnan(self.variance):
            return None
        if self.variance == 0:
            return float(self.mean == 0)
        return 2 * float(t.sf(abs(self.mean) / math.sqrt(self.variance), self.freedom))


def estimate(values: Collection[float]) -> Estimate | None:
    """The mean of independent values; None of none."""
    if not len(values):
        return None
    count = len(values)
    variance = statistics.variance(values) / count if count > 1 else math.nan
    return Estimate(statistics.fmean(values), variance, count - 1, count)


def equal_weights(estimates: Sequence[Estimate]) -> Estimate | None:
    """The mean of independent means, each with the same weight; None of none.

    The means' subjects are taken as fixed: only their own errors count. Degrees of freedom by
    Welch and Satterthwaite. No variance where one of the means has none.
    """
    if not estimates:
        return None
    means, variances, freedoms, counts = np.array([astuple(each) for each in estimates]).T
    total, freedom = variances.sum(), freedoms.sum()
    if total > 0:  # without any spread the degrees of freedom do not matter
        freedom = total**2 / (variances**2 / freedoms).sum()
    return Estimate(means.mean(), total / len(estimates) ** 2, freedom, int(counts.sum()))


def welch(ours: Collection[float], theirs: Collection[float]) -> Estimate | None:
    """The difference of two means of independent values; None where one has none.

    It has a variance, and with it an interval, from `FEWEST` values on each side on.
    """
    one, other = estimate(ours), estimate(theirs)
    both = equal_weights([each for each in (one, other) if each])
    if one is None or other is None or both is None:
        return None
    few = min(one.count, other.count) < FEWEST
    variance = math.nan if few else one.variance + other.variance
    return Estimate(one.mean - other.mean, variance, both.freedom, both.count)


def holm(chances: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for being several (Holm 1979); None stays."""
    known = sorted(chance for chance in chances if chance is not None)
    corrected, least = {}, 0.0
    for rank, chance in enumerate(known):
        least = corrected[chance] = max(least, min(1.0, chance * (len(known) - rank)))
    return [None if chance is None else corrected[chance] for chance in chances]
