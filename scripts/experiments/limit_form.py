"""Forms of the step limit that docs/plans/loss-limit.md compares, before one of them is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dwmgrad import DWMGrad, rule

RAMPS: dict[str, Callable[[float], float]] = {
    "none": lambda share: 1.0,
    "linear": lambda share: min(1.0, share),
    "sqrt": lambda share: min(1.0, math.sqrt(share)),
}
"""Name: how far the loss is trusted, for the steps made as a share of `ramp_steps`."""


class LimitForm(DWMGrad):
    """DWMGrad whose step limit has another trust than the window. On one device, on the host.

    Args:
        params, lr: as in DWMGrad.
        ramp: a name of `RAMPS`, or `window`.
        ramp_steps: after which the trust is whole.
        limit_smoothing: EMA decay of the loss in the limit.
        norm_smoothing: EMA decay of the prediction at a learning rate of 1; where that mean is
            larger than this step's, it takes its place.
        options: DWMGrad's others; by default a momentum and a mean square with fixed windows.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        ramp: str = "none",
        ramp_steps: int = 1,
        limit_smoothing: float = 0.0,
        norm_smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        self.ramp, self.ramp_steps = RAMPS.get(ramp), ramp_steps
        self.limit_smoothing, self.smoothed = limit_smoothing, math.nan
        self.norm_smoothing, self.norms, self.weight = norm_smoothing, 0.0, 0.0
        if "preset" not in options:
            fixed = {"max_window": 1, "second_moment_window": 1000, "bias_correction": True}
            options = {**fixed, **options}
        super().__init__(params, lr, **options)

    def _limit_of(self, predicted: float, window: rule.Window, loss: float) -> float:
        old = loss if math.isnan(self.smoothed) else self.smoothed
        self.smoothed = self.limit_smoothing * old + (1 - self.limit_smoothing) * loss
        lr = float(self.param_groups[0]["lr"])
        if lr > 0:  # bias-corrected
            self.norms += (1 - self.norm_smoothing) * (predicted / lr - self.norms)
            self.weight += (1 - self.norm_smoothing) * (1 - self.weight)
            predicted = max(predicted, lr * self.norms / self.weight)
        trusted = window
        if self.ramp is not None:
            share = (self.param_groups[0]["steps"] + 1) / self.ramp_steps
            trusted = rule.Window(self.ramp(share), max_size=1)
        return super()._limit_of(predicted, trusted, self.smoothed)
