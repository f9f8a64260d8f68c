"""What the comparisons' runs say: means with intervals, steps to a mark, rates that work."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEVEL = 0.95
"""Of all intervals."""

TAIL = 0.05
"""A loss is a mean over this share of the budget, as `recording.Recorder` takes the final one."""

Curve = Sequence[Sequence[float]]
"""[step, value] points in the order of the steps."""


@dataclass(frozen=True)
class Estimate:
    """A mean and what is known of its error.

    Attributes:
        mean: of the values.
        variance: of the mean; None where there was one value, which says nothing of its spread.
        freedom: degrees of freedom of the variance.
        count: how many values.
    """

    mean: float
    variance: float | None
    freedom: float
    count: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval by Student's t; None of one value."""
        if self.variance is None:
            return None
        from scipy.stats import t

        margin = float(t.ppf(0.5 + LEVEL / 2, self.freedom)) * math.sqrt(self.variance)
        return self.mean - margin, self.mean + margin


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of independent values; None of none."""
    if not values:
        return None
    count = len(values)
    variance = statistics.variance(values) / count if count > 1 else None
    return Estimate(statistics.fmean(values), variance, count - 1, count)


def equal_weights(estimates: Sequence[Estimate]) -> Estimate | None:
    """The mean of independent means, each with the same weight; None of none.

    The means' subjects are taken as fixed: only their own errors count. Degrees of freedom by
    Welch and Satterthwaite. No variance where one of the means has none.
    """
    if not estimates:
        return None
    mean, count = statistics.fmean(e.mean for e in estimates), sum(e.count for e in estimates)
    variances = [e.variance for e in estimates if e.variance is not None]
    if len(variances) < len(estimates):
        return Estimate(mean, None, 0, count)
    total = math.fsum(variances)
    freedom: float = sum(e.freedom for e in estimates)  # of no consequence without any spread
    if total > 0:
        freedom = total**2 / math.fsum(
            variance**2 / each.freedom for variance, each in zip(variances, estimates, strict=True)
        )
    return Estimate(mean, total / len(estimates) ** 2, freedom, count)


def steps_to_target(scores: Curve, target: float, higher_is_better: bool) -> int | None:
    """The first recorded step with a score at or past the target; None: never."""
    for step, score in scores:
        if (score >= target) if higher_is_better else (score <= target):
            return int(step)
    return None


def trailing_means(losses: Curve, budget: int) -> list[tuple[int, float]]:
    """At each recorded step the mean loss of the steps before it that are `TAIL` of the budget.

    Each recorded loss stands for the steps since the record before it. Steps before the first
    full tail have no mean.
    """
    tail = max(1, math.ceil(TAIL * budget))
    found: list[tuple[int, float]] = []
    first = 0
    for last, (step, _) in enumerate(losses):
        while losses[first][0] <= step - tail:
            first += 1
        if step >= tail:
            found.append(
                (int(step), statistics.fmean(loss for _, loss in losses[first : last + 1]))
            )
    return found


def steps_to_loss(losses: Curve, mark: float, budget: int, final: float | None) -> int | None:
    """The first recorded step whose trailing mean loss is at or below `mark`; None: never.

    Args:
        losses: what was recorded.
        mark: the loss to reach.
        budget: all steps of the run.
        final: the run's own mean loss over its last steps, which is the trailing mean at `budget`,
            where no record may fall; None: the run did not end.
    """
    for step, mean in trailing_means(losses, budget):
        if mean <= mark:
            return step
    return budget if final is not None and final <= mark else None


def median_of_all(steps: Sequence[float | None]) -> float | None:
    """The median, where None stands for never: None where that is the median."""
    if not steps:
        return None
    found = statistics.median(math.inf if step is None else step for step in steps)
    return None if math.isinf(found) else found


@dataclass(frozen=True)
class Range:
    """Learning rates that work.

    Attributes:
        low, high: the ends; None: none works.
        at_least: it touches an end of what was searched, and may go on beyond.
    """

    low: float | None
    high: float | None
    at_least: bool

    @property
    def decades(self) -> float:
        """The width in powers of ten."""
        if self.low is None or self.high is None:
            return 0.0
        return math.log10(self.high / self.low)


def working_range(
    trials: Sequence[tuple[float, float | None]], mark: float, higher_is_better: bool
) -> Range | None:
    """The widest range of learning rates in which the score stays at or past `mark`.

    Between trials the score is taken as linear in log(lr); up to a trial that diverged nothing
    works but the trial before it.

    Args:
        trials: (lr, score), in any order; None: it diverged. Of one lr twice the worse counts.
        mark: the score that is enough.
        higher_is_better: of the score.

    Returns:
        None without trials.
    """
    if not trials:
        return None
    sign = 1 if higher_is_better else -1
    heights: dict[float, float] = {}
    for lr, score in trials:
        height = -math.inf if score is None else sign * (score - mark)
        heights[lr] = min(height, heights.get(lr, math.inf))
    points = sorted((math.log10(lr), lr, height) for lr, height in heights.items())
    best = Range(None, None, False)
    touches = False  # an end of what was tried: that range may be wider than it looks
    begin: float | None = None
    for number, (x, lr, height) in enumerate(points):
        if height < 0:
            continue
        before, after = points[number - 1 : number], points[number + 1 : number + 2]
        if begin is None:
            begin = 10 ** _crossing(x, height, before[0]) if before else lr
        if after and after[0][2] >= 0:
            continue
        found = Range(
            begin,
            10 ** _crossing(x, height, after[0]) if after else lr,
            begin == points[0][1] or not after,
        )
        touches = touches or found.at_least
        if best.low is None or found.decades > best.decades:
            best = found
        begin = None
    return replace(best, at_least=touches)


def _crossing(x: float, height: float, other: tuple[float, float, float]) -> float:
    """Where the line from (x, height >= 0) to a point below 0 crosses 0."""
    if math.isinf(other[2]) or height == 0:
        return x
    return x + (other[0] - x) * height / (height - other[2])
