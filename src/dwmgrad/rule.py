"""The rule, once: for floats on the host, and for 0-dim tensors on a device (`capturable=True`).

Of the four lines in `optimizer.DWMGrad`, `Window.observe` is the first, `coefficients` what the
others need of it, `move` the others. Not the paper's: decoupled weight decay λ, as in AdamW, and
those arguments of `PAPER` that are off there (None, False or 0).
"""

from __future__ import annotations

import difflib
import functools
import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

RULE_VERSION = 1
"""Raised when the same losses and gradients give other numbers: such runs are other runs."""
LIMIT_VERSION = 2
"""Raised when only runs with a `loss_limit` give other numbers."""
SIGNALS = ("decrease", "increase", "loss")
LEAST_EPS = torch.finfo(torch.float32).tiny
NO_SHARE = 2.0**-60
"""A share below which 1 - share is 1."""

PAPER: dict[str, Any] = {
    "momentum": 0.9,
    "initial_window": 5,
    "max_window": 10,
    "window_signal": "decrease",
    "loss_smoothing": 0.0,
    "bias_correction": False,
    "normalize_momentum": False,
    "second_moment_window": None,
    "auto_lr": False,
    "loss_limit": None,
    "limit_growth": 0.0,
    "limit_slope": 0.0,
    "loss_floor": 0.0,
    "loss_guard": None,
}
"""The arguments that a preset may set, with the paper's values, which hold without one."""

_BY_THE_LOSS: dict[str, Any] = {
    "max_window": 100,
    "window_signal": "loss",
    "bias_correction": True,
    "second_moment_window": 1000,
    "loss_limit": 0.1,
    "limit_growth": 1.4,
    "loss_smoothing": 0.9,
}
PRESETS: dict[str, dict[str, Any]] = {
    "finetune": {
        "max_window": 100,
        "loss_smoothing": 0.9,
        "bias_correction": True,
        "normalize_momentum": True,
        "second_moment_window": 500,
    },
    "capped": {**_BY_THE_LOSS, "normalize_momentum": True},
    "auto": {**_BY_THE_LOSS, "momentum": 0.6, "limit_slope": 1.0, "auto_lr": True},
}
"""Name: what it sets in place of the paper's values. docs/evidence.md compares them with AdamW."""
AUTO_LR = 0.03
"""The learning rate that `auto_lr` begins from: larger than any that the loss allows for long."""
AUTO_SHARE = 0.2
"""Of a run's steps: over so many the windows of `capped` and `auto` grow, where they are known."""

GUARD_WARMUP = 15
"""Losses from which a guard learns before it refuses the first one."""
GUARD_MEMORY = 20
"""Losses that a guard's mean and deviation remember."""
MOST_REFUSED = 3
"""Losses in a row that a guard refuses; then it begins anew."""

Number = Any  # a number on the host, a 0-dim tensor on a device


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
                it is passed over: the window and the means hold.
            counts: False changes nothing.
            anew: of losses alike, whether the comparison begins anew from the last one, which was
                passed over.
        """
        known = alike & _is_known(self.mean_loss)
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
        grows = moves & grows
        size = self.size + where(moves, where(grows, 1, -1), 0)
        self.size = _within(1, size, self.max_size)
        if self.follows_fall:
            self._follow(loss, moves, anew)
        self.last_loss = where(counts, loss, self.last_loss)
        self.mean_loss = where(moves, mean, self.mean_loss)
        height = past - self.floor
        left = self.loss_left * (mean - self.floor) / _within(LEAST_EPS, height)
        left = where(height > 0, _within(0.0, left, 1.0), 1.0)
        self.loss_left = where(moves, left, self.loss_left)
        self.observations = self.observations + counts
        self.increases = self.increases + grows

    def _follow(self, loss: Number, moves: Number, anew: Number) -> None:
        known = _is_known(self.quarter_loss) & _is_known(self.slow_loss)
        quarter = where(known, where(anew, self.last_loss, self.quarter_loss), loss)
        quarter = quarter + (loss - quarter) / max(1.0, self.max_size / 4)
        slow = where(anew, self.last_loss, self.slow_loss)
        slow = where(known & (self.size >= self.max_size), slow, quarter)
        slow = slow + _within(-math.inf, quarter - slow, 0.0) / self.max_size
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
        fall = 1 - (quarter - self.floor) / _within(LEAST_EPS, height)
        return where(height > 0, _within(0.0, fall, 1.0), 0.0)

    def decay(self, fixed: int | None = None) -> Number:
        """What a step keeps of the mean squared gradient: (ω − 1)/ω; of a fixed window, its own."""
        size = fixed or self.size
        return (size - 1) / size

    def momentum(self, base: float) -> Number:
        """The effective momentum μ = γω/δ for the base momentum γ."""
        return base * self.size / self.max_size


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

    def observe(self, loss: Number, counts: Number = True) -> None:
        """Learns from a loss; `counts` False changes nothing."""
        refused = counts & self.refuses(loss)
        past = where(self.seen > 0, self.mean, loss)
        off = where(refused, self._threshold_loss(), loss) - past
        weight = 1 / _within(1, self.seen + 1, GUARD_MEMORY)
        deviation = self.deviation + weight * (1.25 * abs(off) - self.deviation)
        in_row = where(refused, self.in_row + 1, 0)
        anew = in_row >= MOST_REFUSED
        self.mean = where(counts, past + weight * off, self.mean)
        self.deviation = where(counts, deviation, self.deviation)
        self.seen = where(counts, where(anew, 0, self.seen + 1), self.seen)
        self.in_row = where(counts, where(anew, 0, in_row), self.in_row)
        self.refused = self.refused + refused

    def _threshold_loss(self) -> Number:
        return self.mean + self.threshold * self.deviation


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
        _within(LEAST_EPS, group["eps"] * root),
        lr * group["weight_decay"],
    )


def share_after(share: Number, decay: Number) -> Number:
    """The share that the zeros from which s began have in it after a step with this decay.

    It is the product of the decays since the parameter's own beginning. Without one, 0, nothing is
    corrected: the paper's rule.
    """
    share = share * decay
    return where(share > NO_SHARE, share, 0.0)


def peak_of(group: dict[str, Any]) -> Number | None:
    """The highest learning rate of a group: what torch's schedulers say, or its first one.

    None for groups of old checkpoints, in which no scheduler says so.
    """
    return group.get("max_lr", group.get("initial_lr", group["peak_lr"]))


def share_of_peak(groups: list[dict[str, Any]]) -> Number:
    """The learning rate as a share of its peak; 1 where no peak is known.

    It is that of the group with the largest learning rate: one that rests at 0 says nothing.
    """
    most, found = None, 1.0
    for group in groups:
        peak = peak_of(group)
        if peak is not None:
            lr, own = group["lr"], _within(0.0, group["lr"] / _within(LEAST_EPS, peak), 1.0)
            above = most is None or lr > most
            most, found = where(above, lr, most), where(above, own, found)
    return found


def learning_rates(groups: list[dict[str, Any]]) -> list[Number]:
    """Each group's α. With `auto_lr` the groups' learning rates say only how α changes.

    It is then `AUTO_LR` at the highest peak of all groups.
    """
    rates = [group["lr"] for group in groups]
    if not groups[0]["auto_lr"]:
        return rates
    peaks = [group["lr"] if (peak := peak_of(group)) is None else peak for group in groups]
    most = _within(LEAST_EPS, largest(peaks))
    return [AUTO_LR * _within(0.0, rate / most, 1.0) for rate in rates]


def predicted_decrease(step_size: Number, momentum: Number, norm: Number) -> Number:
    """α/(1 − μ) · Σ g²/(√s + ε): what one gradient's total effect would take off the loss.

    It would, were the loss as straight as its tangent. `norm` is the sum, with the mean square that
    the step will make.
    """
    return abs(step_size) / (1 - momentum) * norm


def share_left(group: dict[str, Any], clipped_to: Number) -> Number:
    """By how much clipping makes the gradients smaller, in the mean of `max_window` steps.

    What a step along clipped gradients takes off the loss is predicted with them, divided by this.
    Until there are as many steps, the mean is that of all; then each one has the weight of one in
    `max_window`. Steps that clipping hid count like the one before them, the first like the one
    after them. It is the norms before clipping whose mean is taken, as it is they that the
    prediction grows with.

    `clipped_to`, this step's own share, is 1 or more where nothing was clipped, and 0 where
    clipping hid the gradients: such a step says nothing. Until one does, the share is 0.
    """
    last, over = group["clipped_to"], _within(1, group["steps"] + 1, group["max_window"])
    begun = (group["steps"] > 0) & (last > 0)
    own = _within(LEAST_EPS, clipped_to, 1.0)
    last = where(begun, last, own)  # no float is divided by 0
    share = where(begun, over * last * own / ((over - 1) * own + last), own)
    return where(clipped_to > 0, share, where(begun, last, 0.0))


def effective_lr(group: dict[str, Any], window: Window, lr: Number) -> Number:
    """The total effect of a gradient of the usual size, which is AdamW's learning rate there."""
    step_size, _, momentum, *_ = coefficients(group, window, lr, 0.0)
    return abs(step_size) / (1 - momentum)


def step_limit(
    group: dict[str, Any], window: Window, loss: Number, schedule: Number, predicted: Number
) -> Number:
    """What all step sizes and weight decays of a step are multiplied by: min(1, allowed/predicted).

    allowed = share · ω/δ · (α / peak α) · (ℓ − loss_floor). The share is `loss_limit`; it grows by
    `limit_growth` as the loss falls from its highest to its floor, and by `limit_slope` times
    `Window.falling` while it falls. It is a stochastic Polyak step,
    as SPS_max (Loizou et al. 2021, arXiv 2002.10542), with a trust that the window makes begin
    small, and in the metric of the mean square, as MoMo-Adam (Schaipp et al. 2024, arXiv
    2305.07583).

    Where the loss is at its floor or below it, it says nothing of how far to go: the limit of the
    step before holds. So it does where `predicted` is NaN.

    Args:
        window: after it has observed the loss.
        schedule: see `share_of_peak`.
        predicted: the sum of `predicted_decrease` over all parameters.
    """
    trust = window.size / window.max_size
    share = group["loss_limit"]
    if group["limit_growth"]:
        share = share + group["limit_growth"] * (1 - window.loss_left)
    if group["limit_slope"]:
        share = share + group["limit_slope"] * window.falling()
    allowed = share * trust * schedule * (loss - group["loss_floor"])
    limit = _within(0.0, allowed / _within(LEAST_EPS, predicted), 1.0)
    return where((allowed > 0) & (predicted >= 0), limit, group["step_limit"])


def move(param: Tensor, grad: Tensor, v: Tensor, s: Tensor, c: Any) -> None:
    """The three tensor lines, in place, for tensors of one shape and dtype; c: `Coefficients`."""
    s.mul_(c.decay).addcmul_(grad, grad, value=1 - c.decay)
    v.mul_(c.momentum).addcdiv_(grad, s.sqrt().add_(c.eps), value=c.step_size)
    if c.shrink != 0:
        # Not mul_(1 - shrink): that factor, rounded to float32, is off the same way at every step.
        param.add_(param, alpha=-c.shrink)
    param.sub_(v)


def resolve(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the preset, and with its values, else the paper's, where one is None.

    An initial window that is not given is `max_window`, where that is smaller. The settings have
    `preset`, a name of `PRESETS` or None, and all arguments of `PAPER`; others may be among them.

    Raises:
        ValueError: there is no such preset.
    """
    values = dict(settings)
    preset = values.pop("preset")
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        near = difflib.get_close_matches(str(preset), PRESETS, n=1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"preset must be None or one of {', '.join(PRESETS)}; got {preset!r}{hint}"
        )
    chosen = {**PAPER, **PRESETS[preset]} if preset else PAPER
    values |= {name: value for name, value in chosen.items() if values[name] is None}
    if settings["initial_window"] is None and isinstance(values["max_window"], Integral):
        values["initial_window"] = min(values["initial_window"], values["max_window"])
    return values


# ---- the same words for numbers and for tensors ----


def where(condition: Number, yes: Number, no: Number) -> Number:
    """One of two numbers, on the host or on a device."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def widest(device: torch.device) -> torch.dtype:
    """Float64, which holds every whole number up to 2**53, on devices that have it."""
    return torch.float32 if device.type in ("mps", "xpu") else torch.float64


def _is_known(loss: Number | None) -> Number:
    return ~loss.isnan() if isinstance(loss, Tensor) else loss is not None


def _within(least: float, number: Number, most: float = math.inf) -> Number:
    if isinstance(number, Tensor):
        return number.clamp(least, most)
    return min(max(number, least), most)


def largest(numbers: list[Number]) -> Number:
    """Of numbers on the host, on a device, or both."""
    return functools.reduce(lambda one, other: where(other > one, other, one), numbers)
