"""Learning-rate schedules, the same for the Trainer and for plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def _step(progress: float) -> float:
    """A tenth at half of the steps and again at three quarters (He et al. 2015, section 4.2)."""
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "step": _step,
}
"""Name: the factor on the learning rate, for the share of steps done after the warm-up."""


def make_schedule(optimizer: Optimizer, name: str, warmup_steps: int, steps: int) -> LambdaLR:
    """From 0 up to the learning rate over `warmup_steps`, then the schedule over the rest."""
    shape = SCHEDULES[name]

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        return shape(min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps)))

    return LambdaLR(optimizer, factor)
