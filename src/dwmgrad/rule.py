"""The rule, once: for floats on the host, and for 0-dim tensors on a device (`capturable=True`).

Of the four lines in `optimizer.DWMGrad`, `Window.observe` is the first, `coefficients` what the
others need of it, `move` the others. Not the paper's: decoupled weight decay λ, as in AdamW, and
those arguments of `presets.PAPER` that are off there (None, False or 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .scalars import Number, is_known, where, within

RULE_VERSION = 1
"""Raised when the same losses and gradients give other numbers: such runs are other runs."""
SIGNALS = ("decrease", "increase", "loss")
LEAST_EPS = torch.finfo(torch.float32).tiny
NO_SHARE = 2.0**-60
"""A share below which 1 - share is 1."""


@dataclass
class Window:
    """How much history a step relies on: a whole number that follows the training loss.

    Each observed loss moves the window by one: up when the signal is positive, else down, and
    always within [1, max_size].

    Args:
        size: the present window ω, in steps.
        max_size: its upper bound δ, in steps.
        signal: what counts as a reason to grow. `"decrease"`: the loss fell (the paper's text; the
            first loss only shrinks the window). `"increase"`: the loss rose, the first one compared
            with 0 (the authors' CIFAR-10 and MNIST scripts). `"loss"`: the loss is positive
            (Algorithm 1 as printed), or above its `floor`.
        smoothing: EMA decay applied to the loss before it is compared, in [0, 1); 0 disables it.
        last_loss: the loss observed last; None, or on a device NaN, before the first one.
        mean_loss: the EMA; without smoothing the loss observed last.
        loss_left: the mean loss as a share of the highest one so far, both above the floor.
        quarter_loss: the EMA over a quarter of `max_size` losses, if `follows_fall`.
        slow_loss: the EMA of that over `max_size` losses, which begins when the window is full and
            never rises; before that, the same.
        observations: how many losses have been observed.
        increases: how many of them had a positive signal.
        floor: a lower bound of the loss.
        follows_fall: whether `falling` is asked for.
    """

    size: Number = 5
    max_size: int = 10
    signal: str = "decrease"
    smoothing: float = 0.0
    last_loss: Number | None = None
    mean_loss: Number | None = None
    loss_left: Number = 1.0
    quarter_loss: Number | None = None
    slow_loss: Number | None = None
    observations: Number = 0
    increases: Number = 0
    floor: float = 0.0
    follows_fall: bool = False

    def observe(
        self, loss: Number, alike: Number = True, counts: Number = True, anew: Number = False
    ) -> None:
        """Moves the window by one step for one loss.

        Args:
            loss: the step's loss, finite where it counts.
            alike: whether it was made as those before were, so that they can be compared. If not,
                it is passed over: the means hold, and the window, unless its signal is the loss,
                which compares nothing.
            counts: False changes nothing.
            anew: of losses alike, whether the comparison begins anew from the last one, which was
                passed over.
        """
        known = alike & is_known(self.mean_loss)
        past = where(known, where(anew, self.last_loss, self.mean_loss), loss)
        mean = loss
        if self.smoothing:
            mean = where(known, self.smoothing * past + (1 - self.smoothing) * loss, loss)
        if self.signal == "loss":
            grows = mean > self.floor
        elif self.signal == "increase":
            grows = mean > where(known, past, 0.0)
        else:
            grows = mean < past
        moves = counts & alike
        steps = counts if self.signal == "loss" else moves
        grows = steps & grows
        size = self.size + where(steps, where(grows, 1, -1), 0)
        self.size = within(1, size, self.max_size)
        if self.follows_fall:
            self._follow(loss, moves, anew)
        self.last_loss = where(counts, loss, self.last_loss)
        self.mean_loss = where(moves, mean, self.mean_loss)
        height = past - self.floor
        left = self.loss_left * (mean - self.floor) / within(LEAST_EPS, height)
        left = where(height > 0, within(0.0, left, 1.0), 1.0)
        self.loss_left = where(moves, left, self.loss_left)
        self.observations = self.observations + counts
        self.increases = self.increases + grows

    def forget_mean(self, forgets: Number = True) -> None:
        """Later losses are compared with the last one, as if it had been the first; False: no."""
        self.mean_loss = where(forgets, self.last_loss, self.mean_loss)
        if self.follows_fall:
            self.quarter_loss = where(forgets, self.last_loss, self.quarter_loss)
            self.slow_loss = where(forgets, self.last_loss, self.slow_loss)

    def _follow(self, loss: Number, moves: Number, anew: Number) -> None:
        known = is_known(self.quarter_loss) & is_known(self.slow_loss)
        quarter = where(known, where(anew, self.last_loss, self.quarter_loss), loss)
        quarter = quarter + (loss - quarter) / max(1.0, self.max_size / 4)
        slow = where(anew, self.last_loss, self.slow_loss)
        slow = where(known & (self.size >= self.max_size), slow, quarter)
        slow = slow + within(-math.inf, quarter - slow, 0.0) / self.max_size
        self.quarter_loss = where(moves, quarter, self.quarter_loss)
        self.slow_loss = where(moves, slow, self.slow_loss)

    def falling(self) -> Number:
        """By how much the mean of a quarter is below the slow one: a share, above the floor.

        It is 0 where the loss rises, and until the window is full: a loss that falls fast at first
        need not go on so. A loss that jumps and comes back has not fallen.
        """
        quarter: Number = self.quarter_loss
        slow: Number = self.slow_loss
        height = slow - self.floor
        fall = 1 - (quarter - self.floor) / within(LEAST_EPS, height)
        return where(height > 0, within(0.0, fall, 1.0), 0.0)

    def decay(self, fixed: int | None = None) -> Number:
        """What a step keeps of the mean squared gradient: (ω − 1)/ω; of a fixed window, its own."""
        size = fixed or self.size
        return (size - 1) / size

    def momentum(self, base: float) -> Number:
        """The effective momentum μ = γω/δ for the base momentum γ."""
        return base * self.size / self.max_size


def coefficients(
    group: dict[str, Any], window: Window, lr: Number, zero_share: Number
) -> tuple[Number, Number, Number, Number, Number]:
    """The first five of `kernels.Coefficients`, with the window after the step's loss.

    Where the mean square is corrected (see `share_after`), α and ε have the correction in them.
    """
    momentum = window.momentum(group["momentum"])
    step_size = -lr if group["maximize"] else lr
    if group["normalize_momentum"]:
        middle = group["momentum"] / 2  # (1 - m)√((1 - μ²)/(1 - m²)): see `DWMGrad`
        step_size = step_size * ((1 - middle) / (1 + middle) * (1 - momentum * momentum)) ** 0.5
    # α/(√(s/c) + ε) = α√c/(√s + ε√c) with c = 1 - zero_share
    kept = 1 - zero_share
    root = kept.sqrt() if isinstance(kept, Tensor) else math.sqrt(kept)
    return (
        step_size * root,
        window.decay(group["second_moment_window"]),
        momentum,
        within(LEAST_EPS, group["eps"] * root),
        lr * group["weight_decay"],
    )


def share_after(share: Number, decay: Number) -> Number:
    """The share that the zeros from which s began have in it after a step with this decay.

    It is the product of the decays since the parameter's own beginning. Without one, 0, nothing is
    corrected: the paper's rule.
    """
    share = share * decay
    return where(share > NO_SHARE, share, 0.0)


def move(param: Tensor, grad: Tensor, v: Tensor, s: Tensor, c: Any) -> None:
    """The three tensor lines, in place, for tensors of one shape and dtype; c: `Coefficients`."""
    s.mul_(c.decay).addcmul_(grad, grad, value=1 - c.decay)
    v.mul_(c.momentum).addcdiv_(grad, s.sqrt().add_(c.eps), value=c.step_size)
    if c.shrink != 0:
        # Not mul_(1 - shrink): that factor, rounded to float32, is off the same way at every step.
        param.add_(param, alpha=-c.shrink)
    param.sub_(v)
