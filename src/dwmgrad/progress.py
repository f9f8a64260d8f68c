"""The window as plain numbers in every parameter group.

Nothing else survives all the ways in which state dicts are sharded, flattened and reloaded.
"""

from __future__ import annotations

from typing import Any

from .rule import Guard, Number, Window, where

SCHEMA = 8
_WINDOW = {
    "window": "size",
    "last_loss": "last_loss",
    "mean_loss": "mean_loss",
    "loss_left": "loss_left",
    "quarter_loss": "quarter_loss",
    "slow_loss": "slow_loss",
    "observations": "observations",
    "increases": "increases",
}
"""A group's name of each number of `rule.Window`."""
_GUARD = {
    "guard_mean": "mean",
    "guard_deviation": "deviation",
    "guard_seen": "seen",
    "guard_in_row": "in_row",
    "guarded_steps": "refused",
}
"""The same of `rule.Guard`."""
GUARD_COUNTS = ("guard_seen", "guard_in_row", "guarded_steps")
"""Those of them that are whole."""
_OTHERS: dict[str, Any] = {"micro_batches": 0, "steps": 0, "step_limit": 1.0, "effective_lr": 0.0}
PROGRESS = (*_WINDOW, *_OTHERS, *_GUARD, "schema")
"""The window's numbers, from how many micro-batches a rank the last loss came (0: not known), how
many steps were made, the last `rule.step_limit` (1 without one) and `rule.effective_lr` (0 without
one), and those of `rule.Guard`. Plain int, float or None, equal in every parameter group."""


def initial_progress(initial_window: int) -> dict[str, Any]:
    """The numbers of a group that has seen no loss yet."""
    return {**progress_of(Window(size=initial_window)), **_OTHERS, **guard_numbers(Guard(0.0))}


def progress_of(window: Window) -> dict[str, Any]:
    """The window as the plain numbers that a group holds."""
    return {name: getattr(window, field) for name, field in _WINDOW.items()} | {"schema": SCHEMA}


def window_of(group: dict[str, Any]) -> Window:
    """The window that a group's numbers, on the host or on a device, and settings describe."""
    return Window(
        max_size=group["max_window"],
        signal=group["window_signal"],
        smoothing=group["loss_smoothing"],
        floor=group["loss_floor"],
        follows_fall=group["limit_slope"] > 0,
        **{field: group[name] for name, field in _WINDOW.items()},
    )


def guard_numbers(guard: Guard) -> dict[str, Any]:
    """The guard as the plain numbers that a group holds."""
    return {name: getattr(guard, field) for name, field in _GUARD.items()}


def guard_of(group: dict[str, Any]) -> Guard:
    """The guard that a group's numbers, on the host or on a device, and settings describe."""
    return Guard(group["loss_guard"], **{field: group[name] for name, field in _GUARD.items()})


def stands_out(group: dict[str, Any], loss: float | None) -> bool:
    """Whether the group's guard, where it has one, refuses the loss."""
    return group["loss_guard"] is not None and loss is not None and guard_of(group).refuses(loss)


def advanced(
    group: dict[str, Any],
    loss: Number,
    micro_batches: Number,
    happens: Number = True,
    counts: Number = True,
) -> tuple[dict[str, Any], Window, Number, Number]:
    """What becomes of a group's numbers in one more step, on the host or on a device.

    A loss that stands out makes no step: only the guard sees it. Losses of steps with unlike
    numbers of micro-batches are not compared: where each is divided by the full number, the loss of
    a short step is lower for that alone.

    Args:
        group: its numbers and settings.
        loss, micro_batches: of the step, the means over the ranks.
        happens, counts: whether there is a step, and whether it has a loss; else the window holds.

    Returns:
        The numbers; the window; and `happens` and `counts` after the guard has seen the loss.
    """
    seen: dict[str, Any] = {}
    if group["loss_guard"] is not None:
        guard = guard_of(group)
        refused = counts & guard.refuses(loss)
        guard.observe(loss, counts)
        seen = guard_numbers(guard)
        happens, counts = (where(refused, False, each) for each in (happens, counts))
    window, before = window_of(group), group["micro_batches"]
    window.observe(loss, (before == 0) | (before == micro_batches), counts)
    count = where(counts, micro_batches, before)
    numbers = {"micro_batches": count, "steps": group["steps"] + happens}
    return {**progress_of(window), **numbers, **seen}, window, happens, counts
