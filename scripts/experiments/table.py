"""Results side by side, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

SHARES = ("accuracy", "f1", "matthews_correlation", "pearson")
"""Metrics that are shown in percent."""


def markdown(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A row for each label: its settings, mean ± standard deviation over the seeds, and times.

    A run that diverged has no score: it is counted in its row and is in no mean.

    Args:
        results: label: the results of its seeds. A label without results has no row.
    """
    rows = {label: list(found) for label, found in results.items() if found}
    if not rows:
        return "no results"
    first = next(iter(rows.values()))[0]
    metric = first["metric"]
    arrow = "higher" if first["higher_is_better"] else "lower"
    unit = ", %" if metric in SHARES else ""
    lines = [
        f"| optimizer | lr | {metric}{unit} ({arrow} is better) | seeds | training loss "
        "| s per run |",
        "|---|---|---|---|---|---|",
    ]
    for label, found in rows.items():
        scores = [result["score"] for result in found if result["score"] is not None]
        losses = [r["train_loss"] for r in found if r["train_loss"] is not None]
        diverged = sum(result["diverged"] for result in found)
        seeds = f"{len(found)}" + (f", {diverged} diverged" if diverged else "")
        seconds = statistics.median(result["seconds"] for result in found)
        lines.append(
            f"| {label} | {found[0]['settings']['lr']:g} | {spread(scores, metric)} | {seeds} "
            f"| {spread(losses)} | {seconds:.3g} |"
        )
    return "\n".join(lines)


def comparison_tables(record: Mapping[str, Any]) -> str:
    """A comparison's JSON: the search, the seeds at each one's best rate, the shared rate."""
    tuning, all_of = record["plan"]["tuning"], record["contenders"].values()
    by = record["metric"] if tuning["by"] == "score" else tuning["by"]
    whole = "" if record["complete"] else "; not complete: the same command goes on"
    parts = [
        f"{record['title']}: {record['workload']}, {record['steps']} steps{whole}",
        f"Search, seed {tuning['seed']}: the learning rates and their {by}",
        "\n".join(["| optimizer | trials | best |", "|---|---|---|", *map(_search_row, all_of)]),
    ]
    for key, title in (("seeds", "At each one's best rate"), ("shared", "At one rate for all")):
        runs = {
            each["title"]: [{**record, **run, "settings": run} for run in each[key]]
            for each in all_of
        }
        if any(runs.values()):
            parts += [title, markdown(runs)]
    return "\n\n".join(parts)


def _search_row(contender: Mapping[str, Any]) -> str:
    trials = sorted(contender["trials"], key=lambda run: run["lr"])
    values = ["diverged" if run["tuned_by"] is None else f"{run['tuned_by']:.4g}" for run in trials]
    cells = ", ".join(f"{r['lr']:g}: {value}" for r, value in zip(trials, values, strict=True))
    best = "-" if contender["best_lr"] is None else f"{contender['best_lr']:g}"
    error = f" ({contender['error']})" if contender["error"] else ""
    return f"| {contender['title']} | {cells} | {best}{error} |"


def spread(values: Sequence[float], metric: str = "") -> str:
    """Mean ± sample standard deviation; the mean alone of one value; a dash of none."""
    if not values:
        return "-"
    factor, form = (100, ".2f") if metric in SHARES else (1, ".4g")
    mean = format(factor * statistics.mean(values), form)
    if len(values) == 1:
        return mean
    deviation = format(factor * statistics.stdev(values), ".2f" if factor == 100 else ".2g")
    return f"{mean} ± {deviation}"
