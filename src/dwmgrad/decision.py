"""What a step is made of, decided before anything moves: on the host, or on a device.

As in `rule`, a number is one of Python's or, with `capturable`, a 0-dim tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from . import kernels, rule
from .plan import Moves
from .rule import Number


class Call(NamedTuple):
    """What the kernels are to do with parameters of one group and one age."""

    buckets: list[kernels.Bucket]
    numbers: kernels.Coefficients
    group: dict[str, Any]

    def limited(self, limit: Number) -> Call:
        """The call in a step that is scaled down; see `rule.step_limit`."""
        c = self.numbers
        return self._replace(
            numbers=c._replace(step_size=c.step_size * limit, shrink=c.shrink * limit)
        )


def calls_of(
    groups: list[dict[str, Any]],
    moves: Moves,
    window: rule.Window,
    rates: list[Number],
    share_of: Callable[[Any], Number],
    noise: Number,
) -> list[Call]:
    """The calls of a step that nothing limits, with the window after it.

    `share_of` takes an age, and gives the share of the zeros after the step; `noise` is the number
    of the step.
    """
    calls = []
    for group, own, lr in zip(groups, moves, rates, strict=True):
        rounds = group["stochastic_rounding"]
        rounding = rounds or group["state_dtype"] == "bfloat16", rounds
        preferences = group["foreach"], group["fused"]
        for age, _, buckets in own:
            five = rule.coefficients(group, window, lr, share_of(age))
            c = kernels.Coefficients(*five, noise, *rounding, *preferences)
            calls.append(Call(buckets, c, group))
    return calls


def predicted(
    calls: Iterable[Call], weight_of: Callable[[Tensor], float] | None = None, *on_device: Any
) -> Number:
    """What the calls of this rank would take off the loss; see `rule.step_limit`.

    `weight_of` says how much a parameter counts here. `on_device` is nothing on the host, else the
    last two arguments of `kernels.squared_norms`.
    """
    totals: dict[Any, Number] = {}  # by device: each is read once
    for buckets, c, group in calls:
        for norms, ordinals in kernels.squared_norms(buckets, c, *on_device):
            weights = [
                1.0 if weight_of is None else weight_of(group["params"][n]) for n in ordinals
            ]
            if isinstance(norms, Tensor) and len(set(weights)) == 1:
                norm = weights[0] * norms.sum()  # one launch
            else:
                norm = sum(weight * each for weight, each in zip(weights, norms, strict=True))
            home = norms.device if isinstance(norms, Tensor) else None
            decrease = rule.predicted_decrease(c.step_size, c.momentum, norm)
            totals[home] = totals.get(home, 0.0) + decrease
    return sum(totals.values() if on_device else map(float, totals.values()), 0.0)
