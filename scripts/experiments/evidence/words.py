"""How figures are written: the functions that page.md.j2 calls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from experiments.stats import Estimate


def several(count: int, thing: str) -> str:
    """1 seed, 2 seeds."""
    return f"{count} {thing}{'s' * (count != 1)}"


def plain(value: Any) -> str:
    """A setting's value."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def known(value: float | None, form: str) -> str:
    """A number; a dash of none."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def percent(share: float) -> str:
    """A share in percent; a dash of none."""
    return "-" if math.isnan(share) else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def lead(found: Estimate | None) -> str:
    """+0.52 [-0.10, +1.14]; without an interval the difference alone; a dash of none."""
    if found is None:
        return "-"
    if found.interval is None:
        return f"{found.mean:+.2f}"
    low, high = found.interval
    return f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def changes(entries: Mapping[str, Any], label: str) -> str:
    """The settings of a label that are not as in the first."""
    first, entry = next(iter(entries.values())), entries[label]
    old, new = ({"contender": each.get("contender"), **each["settings"]} for each in (first, entry))
    changed = [
        f"{name}={plain(new[name])}" if name in new else f"{name} not set"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    return ", ".join(changed) or "the same"
