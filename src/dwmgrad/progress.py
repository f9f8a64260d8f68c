"""The window as plain numbers in every parameter group.

Nothing else survives all the ways in which state dicts are sharded, flattened and reloaded.
"""

from __future__ import annotations

from typing import Any

from .guard import Guard
from .ranks import Agreed
from .rule import Window
from .scalars import Number, where

SCHEMA = 10
MOST_PASSED = 8
"""Losses in a row that are not compared; then later ones are compared with the last of these."""
LOSSES = ("last_loss", "mean_loss", "quarter_loss", "slow_loss")
"""The numbers that are None before the first loss, on a device NaN."""
_WINDOW = {"window": "size"} | {
    name: name for name in (*LOSSES, "loss_left", "observations", "increases")
}
"""A group's name of each number of `rule.Window`."""
_GUARD = {
    "guard_mean": "mean",
    "guard_deviation": "deviation",
    "guard_seen": "seen",
    "guard_in_row": "in_row",
    "guarded_steps": "refused",
}
"""The same of `guard.Guard`."""
COUNTS = (
    *("observations", "window", "increases", "steps", "passed_over"),
    *("guard_seen", "guard_in_row", "guarded_steps"),
)
"""The numbers that are whole."""
_OTHERS: dict[str, Any] = {
    "micro_batches": 0,
    "mean_micro_batches": 0,
    "passed_over": 0,
    "steps": 0,
    "step_limit": 1.0,
    "effective_lr": 0.0,
}
PROGRESS = (*_WINDOW, *_OTHERS, *_GUARD, "schema")
"""The window's numbers, from how many micro-batches a rank the last loss came (0: not known), and
those of the mean, how many losses in a row did not compare, how many steps were made, the last
`limit.step_limit` (1 without one) and `limit.effective_lr` (0 without one), and the guard's. Plain
int, float or None, equal in every parameter group."""


def initial_progress(initial_window: int) -> dict[str, Any]:
    """The numbers of a group that has seen no loss yet."""
    window = group_numbers(Window(size=initial_window))
    return {**window, **_OTHERS, **group_numbers(Guard(0.0)), "schema": SCHEMA}


def group_numbers(of: Window | Guard) -> dict[str, Any]:
    """The window, or the guard, as the plain numbers that a group holds."""
    names = _WINDOW if isinstance(of, Window) else _GUARD
    return {name: getattr(of, field) for name, field in names.items()}


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


def advanced(
    group: dict[str, Any], agreed: Agreed
) -> tuple[dict[str, Any], Window, Number, Number]:
    """What becomes of a group's numbers in a step that was agreed on, on the host or on a device.

    A loss that stands out makes no step: only the guard sees it. Losses of as many micro-batches
    compare: where each is divided by the full number, that of a short step is lower for that alone.
    Two in a row of another number begin a new comparison. A loss that does not compare is passed
    over. After `MOST_PASSED` in a row the comparison begins anew with the last of them, as the
    number of before may never come back. The guard begins anew with the comparison.

    Returns:
        The numbers, the window, and `happens` and `counts` after the guard has seen the loss.
    """
    happens, counts, loss = agreed.happens, agreed.counts, agreed.loss
    count, mean = agreed.micro_batches, group["mean_micro_batches"]
    anew = (mean != 0) & (mean != count) & (group["micro_batches"] == count)
    alike = anew | (mean == 0) | (mean == count)
    guard = Guard(group["loss_guard"], **{field: group[name] for name, field in _GUARD.items()})
    guarded = group["loss_guard"] is not None
    if guarded:
        judged = counts & alike
        guard.seen = where(judged & anew, 0, guard.seen)
        refused = guard.observe(loss, judged)
        happens, counts = (where(refused, False, each) for each in (happens, counts))
    window = window_of(group)
    window.observe(loss, alike, counts, anew)
    compared = counts & alike
    passed = where(compared, 0, group["passed_over"] + counts)
    forgets = passed >= MOST_PASSED
    window.forget_mean(forgets)
    guard.seen = where(forgets, 0, guard.seen)
    numbers = {
        "micro_batches": where(counts, count, group["micro_batches"]),
        "mean_micro_batches": where(compared | forgets, count, group["mean_micro_batches"]),
        "passed_over": where(forgets, 0, passed),
        "steps": group["steps"] + happens,
    }
    if guarded:
        numbers |= group_numbers(guard)
    return {**group_numbers(window), **numbers}, window, happens, counts
