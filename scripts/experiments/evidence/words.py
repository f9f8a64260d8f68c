"""How numbers, verdicts and tables are written."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.stats import Estimate

MET, NOT_MET, NOT_MEASURED, NOT_RUN = "met", "not met", "not measured", "not run"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is written as one, not taken for an edge."""
    lines = [[*heads], ["---"] * len(heads), *([*row] for row in rows)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )


def every(verdicts: Sequence[str]) -> str:
    """The verdict on a goal that must be met each time."""
    if NOT_MET in verdicts:
        return NOT_MET
    return MET if verdicts and set(verdicts) == {MET} else NOT_MEASURED


def verdict(met: bool | None) -> str:
    """None: it is not known."""
    return NOT_MEASURED if met is None else MET if met else NOT_MET


def difference(found: Estimate | None, unit: str = "") -> str:
    """+0.52 [-0.10, 1.14], with its unit."""
    if found is None:
        return NOT_MEASURED
    tail = f" {unit}" if unit else ""
    if found.interval is None:
        return f"{found.mean:+.2f}{tail}, one seed"
    low, high = found.interval
    return f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]{tail}"


def against_zero(found: Estimate | None) -> str:
    """Where the interval lies."""
    if found is None or found.interval is None:
        return "no interval"
    low, high = found.interval
    return "interval above 0" if low > 0 else "interval below 0" if high < 0 else "includes 0"


def missed(steps: Sequence[float | None]) -> str:
    """'missed by 2 of 5', or nothing."""
    count = sum(step is None for step in steps)
    return f"missed by {count} of {len(steps)}" if count else ""


def duration(seconds: float) -> str:
    """In the unit that fits."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def machines(records: Sequence[Mapping[str, Any]]) -> str:
    """What the seconds depend on, in a line."""
    return "; ".join(_machine(record) for record in records) or "no record"


def _machine(record: Mapping[str, Any]) -> str:
    parts = [str(record.get("processor") or "unknown processor")]
    if record.get("cores"):
        parts.append(f"{record['cores']} cores")
    if record.get("threads"):
        parts.append(f"{record['threads']} thread{'s' * (record['threads'] != 1)} a run")
    parts.append(str(record.get("accelerator") or "no accelerator"))
    return ", ".join(parts)


def versions(records: Sequence[Mapping[str, Any]]) -> str:
    """Libraries and their versions, in a line."""
    lines = [", ".join(f"{name} {version}" for name, version in each.items()) for each in records]
    return "; ".join(lines) or "no record"


def plain(value: Any) -> str:
    """A setting's value."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def several(count: int, thing: str) -> str:
    """1 seed, 2 seeds."""
    return f"{count} {thing}{'s' * (count != 1)}"


def mean_of(values: Iterable[float | None], form: str) -> str:
    """The mean of those that are there; a dash of none."""
    found = [value for value in values if value is not None]
    return format(statistics.fmean(found), form) if found else "-"
