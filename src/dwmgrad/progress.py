"""From the plain numbers of a parameter group to the window and to the coefficients of a step.

The window lives as plain numbers in every group: nothing else survives all the ways in which state
dicts are sharded, flattened and reloaded.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from . import kernels, state
from .window import Window

RULE_VERSION = 1
"""Raised when the same losses and gradients give other numbers: such runs are other runs."""
SCHEMA = 4
PROGRESS = (
    "window", "last_loss", "mean_loss", "observations", "increases", "micro_batches", "steps",
    "schema",
)  # fmt: skip
"""The window's numbers, from how many micro-batches a rank the last loss came (0: not known), and
how many steps were made. Plain int, float or None, equal in every parameter group."""
LEAST_EPS = torch.finfo(torch.float32).tiny
NO_SHARE = 2.0**-60
"""A share below which 1 - share is 1."""


def initial_progress(initial_window: int) -> dict[str, Any]:
    """The numbers of a group that has seen no loss yet."""
    return {**progress_of(Window(size=initial_window)), "micro_batches": 0, "steps": 0}


def progress_of(window: Window) -> dict[str, Any]:
    """The window as the plain numbers that a group holds."""
    return {
        "window": window.size,
        "last_loss": window.last_loss,
        "mean_loss": window.mean_loss,
        "observations": window.observations,
        "increases": window.increases,
        "schema": SCHEMA,
    }


def window_of(group: dict[str, Any]) -> Window:
    """The window that a group's numbers describe."""
    return Window(
        size=group["window"],
        max_size=group["max_window"],
        signal=group["window_signal"],
        smoothing=group["loss_smoothing"],
        last_loss=group["last_loss"],
        mean_loss=group["mean_loss"],
        observations=group["observations"],
        increases=group["increases"],
    )


def advanced(group: dict[str, Any], loss: float | None, micro_batches: float) -> dict[str, Any]:
    """The group's numbers after one more step, whose loss moves the window; None holds it.

    Losses of steps with unlike numbers of micro-batches are not compared: where each is divided by
    the full number, the loss of a short step is lower for that alone.
    """
    window = window_of(group)
    if loss is None:
        micro_batches = group["micro_batches"]
    else:
        window.observe(loss, alike=group["micro_batches"] in (0, micro_batches))
    steps = group["steps"] + 1
    return {**progress_of(window), "micro_batches": micro_batches, "steps": steps}


def share_after(share: float, group: dict[str, Any]) -> float:
    """The share of the zeros in a mean square after a step with the group's window.

    It is the product of the decays since the parameter's own beginning. Without one, 0, nothing is
    corrected: the paper's rule.
    """
    share *= window_of(group).decay(group["second_moment_window"])
    return share if share > NO_SHARE else 0.0


def momentum_scale(base: float, momentum: Any) -> Any:
    """What `normalize_momentum` multiplies α by: (1 - m)√((1 - μ²)/(1 - m²)), m = γ/2.

    m is the effective momentum at half the full window. Uncorrelated gradients of size 1 then give
    steps whose mean square is α²(1 - m)/(1 + m) at any effective momentum μ, a number or a tensor.
    """
    middle = base / 2
    return ((1 - middle) / (1 + middle) * (1 - momentum * momentum)) ** 0.5


def coefficients(group: dict[str, Any], zero_share: float) -> kernels.Coefficients:
    """What the kernels need for a step of parameters of this group.

    Args:
        group: with its numbers after `advanced`.
        zero_share: of the parameters; see `share_after`.
    """
    window, lr, eps = window_of(group), float(group["lr"]), group["eps"]
    momentum = window.momentum(group["momentum"])
    step_size = -lr if group["maximize"] else lr
    if group["normalize_momentum"]:
        step_size *= momentum_scale(group["momentum"], momentum)
    if zero_share:  # α/(√(s/c) + ε) = α√c/(√s + ε√c), c = 1 - zero_share
        root = math.sqrt(1 - zero_share)
        step_size, eps = step_size * root, max(eps * root, LEAST_EPS)
    return kernels.Coefficients(
        step_size=step_size,
        decay=window.decay(group["second_moment_window"]),
        momentum=momentum,
        eps=eps,
        shrink=lr * group["weight_decay"],
        noise=group["steps"],
        stochastic_state=state.stochastic_state(group),
        stochastic_params=group["stochastic_rounding"],
    )
