"""How figures are written: the functions that page.md.j2 calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.evidence.measures import MET, NOT_MEASURED, NOT_MET, Measured, mean_lead
from experiments.stats import Estimate, WorkingRange


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


def difference(found: Estimate | None, unit: str = "") -> str:
    """+0.52 [-0.10, +1.14], with its unit."""
    if found is None:
        return NOT_MEASURED
    tail = f" {unit}" if unit else ""
    if found.interval is None:
        return f"{found.mean:+.2f}{tail}, one seed"
    low, high = found.interval
    return f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]{tail}"


def pairs(found: Estimate | None, planned: int) -> str:
    """A difference, and of how many pairs where these are fewer than planned."""
    if found is None:
        return "no pair of seeds"
    fewer = f" ({several(found.count, 'pair')})" if 1 < found.count < planned else ""
    return difference(found) + fewer


def reached(values: pd.Series, form: str, never: str = "") -> str:
    """The median of all, infinity for never, and how many never got there; a dash of none."""
    median, missed = values.median(), int(np.isinf(values).sum())
    parts = [format(median, form) if math.isfinite(median) else never]
    parts += [f"missed by {missed} of {len(values)}"] if missed else []
    return ", ".join(filter(None, parts)) if len(values) else "-"


def decades(found: WorkingRange | None) -> str:
    """The width of a range of learning rates."""
    if found is None or found.low is None:
        return "none works" if found else "-"
    return f"{'at least ' if found.at_least else ''}{found.decades:.2f}"


def verdicts(workloads: Sequence[Measured], judge: str, name: str) -> list[str]:
    """What each one's `equal`, `side`, `sooner`, `faster` or `robust` says of a contender."""
    return [getattr(workload, judge)(name) for workload in workloads]


def worst(found: Sequence[str]) -> str:
    """The verdict on a goal that must be met each time."""
    if found and set(found) == {MET}:
        return MET
    return NOT_MET if NOT_MET in found else NOT_MEASURED


def every(workloads: Sequence[Measured], judge: str, name: str) -> str:
    """The verdict on a goal that must be met on every workload, and on how many it is."""
    found = verdicts(workloads, judge, name)
    unknown = found.count(NOT_MEASURED)
    tail = f", {unknown} not measured" if unknown else ""
    return f"**{worst(found)}** ({found.count(MET)} of {len(found)} met{tail})"


def sides(workloads: Sequence[Measured], name: str) -> str:
    """On how many workloads the interval lies above 0, and below."""
    found = verdicts(workloads, "side", name)
    above, below = (found.count(f"interval {where} 0") for where in ("above", "below"))
    return f"ahead on {above}, behind on {below} of {len(found)}"


def ahead(workloads: Sequence[Measured], name: str) -> str:
    """Goal (b), with the mean and what it lacks."""
    verdict, mean, count = mean_lead(workloads, name)
    lost, total = sum(w.diverged(name) for w in workloads), len(workloads)
    parts = [
        difference(mean, "points") if mean else "",
        f"{count} of {total} workloads" if count < total else "",
        f"{lost} diverged" if lost else "",
    ]
    told = "; ".join(filter(None, parts))
    return f"**{verdict}**" + (f" ({told})" if told else "")


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
