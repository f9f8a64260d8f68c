"""How far a step may go, by its loss: the rule of `loss_limit`, for the host and for a device."""

from __future__ import annotations

import math
from typing import Any

from .rule import LEAST_EPS, Window, coefficients
from .scalars import Number, largest, where, within

LIMIT_VERSION = 2
"""Raised when only runs with a `loss_limit` give other numbers."""
AUTO_LR = 0.03
"""The learning rate that `auto_lr` begins from: larger than any that the loss allows for long."""


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
            lr, own = group["lr"], within(0.0, group["lr"] / within(LEAST_EPS, peak), 1.0)
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
    most = within(LEAST_EPS, largest(peaks))
    return [AUTO_LR * within(0.0, rate / most, 1.0) for rate in rates]


def predicted_decrease(step_size: Number, momentum: Number, norm: Number) -> Number:
    """α/(1 − μ) · Σ g²/(√s + ε): what one gradient's total effect would take off the loss.

    It would, were the loss as straight as its tangent. `norm` is the sum, with the mean square that
    the step will make.
    """
    return abs(step_size) / (1 - momentum) * norm


def share_kept(total_norm: Number, max_norm: float) -> Number:
    """What clipping to a norm leaves of the gradients: 1 or more where it leaves them alone.

    0 for a norm that is infinite or NaN, with which the gradients are gone.
    """
    share = max_norm / (total_norm + 1e-6)  # torch's formula
    return where(abs(total_norm) < math.inf, share, 0.0)


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
    last, over = group["clipped_to"], within(1, group["steps"] + 1, group["max_window"])
    begun = (group["steps"] > 0) & (last > 0)
    own = within(LEAST_EPS, clipped_to, 1.0)
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
    step before holds. So it does where `predicted` is NaN, or 0, as without a gradient.

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
    limit = within(0.0, allowed / within(LEAST_EPS, predicted), 1.0)
    return where((allowed > 0) & (predicted > 0), limit, group["step_limit"])
