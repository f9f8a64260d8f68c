"""The window as plain numbers in every parameter group.

Nothing else survives all the ways in which state dicts are sharded, flattened and reloaded.
"""

from __future__ import annotations

from typing import Any

from .rule import Window

SCHEMA = 4
PROGRESS = (
    "window",
    "last_loss",
    "mean_loss",
    "observations",
    "increases",
    "micro_batches",
    "steps",
    "schema",
)
"""The window's numbers, from how many micro-batches a rank the last loss came (0: not known), and
how many steps were made. Plain int, float or None, equal in every parameter group."""


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
    """The window that a group's numbers, on the host or on a device, and settings describe."""
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
    return {**progress_of(window), "micro_batches": micro_batches, "steps": group["steps"] + 1}
