"""What a run ends with on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from glue.errors import INSTALL
from glue.tasks import Task


def summary(
    title: str, task: Task, results: Mapping[str, float], saved: Mapping[str, Path | str]
) -> str:
    """A table: each metric's name and value, the time, the speed, and where things lie.

    `results` has the names of all_results.json; a metric of the mismatched set ends in `_mm`.
    """
    rows: list[tuple[str, str]] = []
    for suffix, where in (("", ""), ("_mm", " (mismatched)")):
        for name in (*task.metrics, "combined_score", "loss"):
            value = results.get(f"eval_{name}{suffix}")
            if value is not None:
                rows.append((f"{name}{where}", f"{value:.4f}"))
    for name, key, form in (
        ("evaluation examples", "eval_samples", "{:,.0f}"),
        ("training time", "train_runtime", "{:,.1f} s"),
        ("training examples / s", "train_samples_per_second", "{:,.1f}"),
        ("evaluation examples / s", "eval_samples_per_second", "{:,.1f}"),
    ):
        if key in results:
            rows.append((name, form.format(results[key])))
    rows += [(name, str(path)) for name, path in saved.items()]
    return _table(title, rows)


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    left = max((len(name) for name, _ in rows), default=0)
    width = max([len(title), *(left + 2 + len(value) for _, value in rows)])
    lines = [f"{name:<{left}}  {value}" for name, value in rows]
    rule = "-" * min(width, 100)
    return "\n".join(["", title, rule, *lines, rule])


def plot(folder: Path) -> Path | str:
    """The plot's path, or why there is none."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return f"none: it needs matplotlib: {INSTALL.format('glue')}"
    from dwmgrad.report import plot_run

    try:
        return plot_run(folder)
    except (OSError, ValueError) as error:  # a picture that fails must not cost the results
        return f"none: {error}"
