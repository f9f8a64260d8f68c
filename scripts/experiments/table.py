"""How results are written: numbers, and tables in Markdown. page.md.j2 calls these, too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from experiments.stats import Estimate

SHARES = ("accuracy", "f1", "matthews_correlation", "pearson", "explained_variance")
"""Metrics that are shown in percent."""


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """A Markdown table of rows that have the same heads; nothing of no rows."""
    rows = list(rows)
    lines = [[*rows[0]], ["---"] * len(rows[0]), *(row.values() for row in rows)] if rows else []
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def cell(text: str) -> str:
    """A bar in it is written as one, not taken for an edge."""
    return text.replace("|", "\\|").replace("\n", " ")


def score_head(metric: str, higher_is_better: bool) -> str:
    """The head of a column of scores: `f1, % (higher is better)`."""
    unit = ", %" if metric in SHARES else ""
    return f"{metric}{unit} ({'higher' if higher_is_better else 'lower'} is better)"


def spread(values: Iterable[float | None], metric: str = "") -> str:
    """Mean ± sample standard deviation; the mean alone of one value; a dash of none."""
    factor, form, short = (100, ".2f", ".2f") if metric in SHARES else (1, ".4g", ".2g")
    found = factor * pd.Series(list(values), dtype=float).dropna()
    if found.empty:
        return "-"
    mean = format(found.mean(), form)
    return mean if len(found) == 1 else f"{mean} ± {format(found.std(), short)}"


def several(count: int, thing: str) -> str:
    """1 seed, 2 seeds."""
    return f"{count} {thing}{'s' * (count != 1)}"


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
    changed = []
    for name in {**old, **new}:
        value = new.get(name)
        if old.get(name) != value:
            told = f"{value:g}" if isinstance(value, float) else value
            changed.append(f"{name}={told}" if name in new else f"{name} not set")
    return ", ".join(changed) or "the same"
