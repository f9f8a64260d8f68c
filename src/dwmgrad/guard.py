"""Which batches take no step: the loss of one that is broken stands out from the recent ones."""

from __future__ import annotations

from dataclasses import dataclass

from .scalars import Number, where, within

GUARD_WARMUP = 15
"""Losses from which a guard learns before it refuses the first one."""
GUARD_MEMORY = 20
"""Losses that a guard's mean and deviation remember."""
MOST_REFUSED = 3
"""Losses in a row that a guard refuses; then it begins anew."""


@dataclass
class Guard:
    """Which losses stand out from the recent ones, so that their batch had better take no step.

    Mean and deviation take a loss that stands out as if it were at the threshold, so that a broken
    batch hardly moves them. After `MOST_REFUSED` such losses in a row it begins anew: the loss has
    risen to stay.
    """

    threshold: float  # at more than so many deviations above the mean, a loss stands out
    mean: Number = 0.0  # of the recent losses
    deviation: Number = 0.0  # 1.25 · the mean absolute one: of normal losses, the standard one
    seen: Number = 0  # losses that it has learned from
    in_row: Number = 0  # losses refused since the last that was not
    refused: Number = 0  # losses refused in all

    def refuses(self, loss: Number) -> Number:
        """Whether the loss, which is finite, stands out."""
        return (self.seen >= GUARD_WARMUP) & (loss > self._threshold_loss())

    def observe(self, loss: Number, counts: Number = True) -> Number:
        """Learns from a loss, and says whether it stands out; `counts` False changes nothing."""
        refused = counts & self.refuses(loss)
        past = where(self.seen > 0, self.mean, loss)
        off = where(refused, self._threshold_loss(), loss) - past
        weight = 1 / within(1, self.seen + 1, GUARD_MEMORY)
        deviation = self.deviation + weight * (1.25 * abs(off) - self.deviation)
        in_row = where(refused, self.in_row + 1, 0)
        anew = in_row >= MOST_REFUSED
        self.mean = where(counts, past + weight * off, self.mean)
        self.deviation = where(counts, deviation, self.deviation)
        self.seen = where(counts, where(anew, 0, self.seen + 1), self.seen)
        self.in_row = where(counts, where(anew, 0, in_row), self.in_row)
        self.refused = self.refused + refused
        return refused

    def _threshold_loss(self) -> Number:
        return self.mean + self.threshold * self.deviation
