"""Results side by side, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

SHARES = ("accuracy", "f1", "matthews_correlation", "pearson")
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


def markdown(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A row for each label: its settings, mean ± standard deviation over the seeds, and times.

    A run that diverged has no score: it is counted in its row and is in no mean.

    Args:
        results: label: the results of its seeds. A label without results has no row.
    """
    rows = []
    for label, found in results.items():
        if found:
            first, runs = found[0], pd.DataFrame(found)
            diverged = runs.diverged.sum()
            rows.append(
                {
                    "optimizer": label,
                    "lr": f"{first['settings']['lr']:g}",
                    score_head(first["metric"], first["higher_is_better"]): spread(
                        runs.score, first["metric"]
                    ),
                    "seeds": f"{len(runs)}" + (f", {diverged} diverged" if diverged else ""),
                    "training loss": spread(runs.train_loss),
                    "s per run": f"{runs.seconds.median():.3g}",
                }
            )
    return table(rows) or "no results"
