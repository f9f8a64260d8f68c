"""Statistics of runs: intervals of means, steps to a mark, learning rates that work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

LEVEL = 0.95
"""Of all intervals."""

TAIL = 0.05
"""A loss is a mean over this share of the budget, as `recording.Recorder` takes the final one."""

Curve = Sequence[Sequence[float]]
"""[step, value] points in the order of the steps."""


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
        margin = float(t.ppf(0.5 + LEVEL / 2, self.freedom)) * math.sqrt(self.variance)
        return self.mean - margin, self.mean + margin

    @property
    def side(self) -> str:
        """On which side of 0 the interval lies."""
        if self.interval is None:
            return "no interval"
        low, high = self.interval
        return "interval above 0" if low > 0 else "interval below 0" if high < 0 else "includes 0"


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


def steps_to_target(scores: Curve, target: float, higher_is_better: bool) -> float:
    """The first recorded step with a score at or past the target; infinity: never."""
    sign = 1 if higher_is_better else -1
    return next((step for step, score in scores if sign * score >= sign * target), math.inf)


def trailing_means(losses: Curve, budget: int) -> list[tuple[int, float]]:
    """At each recorded step the mean loss of the steps before it that are `TAIL` of the budget.

    Each recorded loss stands for the steps since the record before it. Steps before the first
    full tail have no mean.
    """
    tail = max(1, math.ceil(TAIL * budget))
    steps, values = [int(step) for step, _ in losses], [loss for _, loss in losses]
    firsts = np.searchsorted(steps, np.array(steps) - tail, side="right")
    return [
        (step, statistics.fmean(values[first : last + 1]))
        for last, (step, first) in enumerate(zip(steps, firsts, strict=True))
        if step >= tail
    ]


def steps_to_loss(losses: Curve, mark: float, budget: int, final: float) -> float:
    """The first recorded step whose trailing mean loss is at or below `mark`; infinity: never.

    `final` is the run's own mean loss over its last steps: the trailing mean at `budget`, where no
    record may fall. NaN: the run did not end.
    """
    end = budget if final <= mark else math.inf
    return next((step for step, mean in trailing_means(losses, budget) if mean <= mark), end)


@dataclass(frozen=True)
class WorkingRange:
    """Learning rates that work.

    Attributes:
        low, high: log10 of the ends; None: none works.
        at_least: it touches an end of what was searched, and may go on beyond.
    """

    low: float | None
    high: float | None
    at_least: bool

    @property
    def decades(self) -> float:
        """The width in powers of ten."""
        return 0.0 if self.low is None or self.high is None else self.high - self.low


def working_range(
    trials: Collection[tuple[float, float | None]] | pd.DataFrame,
    mark: float,
    higher_is_better: bool,
) -> WorkingRange | None:
    """The widest range of learning rates in which the score stays at or past `mark`.

    Between trials the score is taken as linear in log(lr); up to a trial that diverged nothing
    works but the trial before it.

    Args:
        trials: (lr, score), in any order; no score: it diverged. Of one lr twice the worse counts.
        mark: the score that is enough.
        higher_is_better: of the score.

    Returns:
        None without trials.
    """
    frame = pd.DataFrame(trials, columns=["lr", "score"], dtype=float)
    if frame.empty:
        return None
    above = (frame.score - mark) * (1 if higher_is_better else -1)
    worst = above.fillna(-math.inf).groupby(frame.lr).min()  # sorted by lr
    rates, heights = np.log10(worst.index), worst.to_numpy()

    def end(inside: int, beyond: int) -> float:
        """Where the line from a rate that works to one that does not meets the mark."""
        if not 0 <= beyond < len(rates) or math.isinf(heights[beyond]):
            return float(rates[inside])
        both = [beyond, inside]
        return float(np.interp(0, heights[both], rates[both]))

    works = np.flatnonzero(heights >= 0)
    if not len(works):
        return WorkingRange(None, None, False)
    blocks = np.split(works, np.flatnonzero(np.diff(works) > 1) + 1)
    ends = [(end(block[0], block[0] - 1), end(block[-1], block[-1] + 1)) for block in blocks]
    low, high = max(ends, key=lambda each: each[1] - each[0])
    # any range at an end of what was tried may be wider than it looks
    return WorkingRange(low, high, bool(works[0] == 0 or works[-1] == len(rates) - 1))
