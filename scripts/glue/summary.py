"""What a run ends with on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dwmgrad.report import plot_run
from glue.card import write_card
from glue.tasks import Task


def report(args: Any, run: Any, results: Mapping[str, float], saved: dict[str, Path | str]) -> None:
    """Print the run's table; draw its plot if one was asked for, and write its model card."""
    drawn = {"plot": lambda: plot_run(run.folder)} if args.report.plot else {}
    if args.training.do_train:
        for name, make in {**drawn, "model card": lambda: write_card(args, run)}.items():
            try:
                saved[name] = make()
            except (ImportError, OSError, ValueError) as error:  # it must not cost the results
                saved[name] = f"none: {error}"
    optimizer = getattr(args.training.optim, "value", args.training.optim)
    print(summary(f"{run.task.name}, optimizer {optimizer}", run.task, results, saved))


def summary(
    title: str, task: Task, results: Mapping[str, float], saved: Mapping[str, Path | str]
) -> str:
    """A table: each metric's name and value, the time, the speed, and where things lie.

    `results` has the names of all_results.json; a metric of the mismatched set ends in `_mm`.
    """
    shown = {
        f"{name}{where}": (f"eval_{name}{suffix}", "{:.4f}")
        for suffix, where in (("", ""), ("_mm", " (mismatched)"))
        for name in (*task.metrics, "combined_score", "loss")
    } | {
        "evaluation examples": ("eval_samples", "{:,.0f}"),
        "training time": ("train_runtime", "{:,.1f} s"),
        "training examples / s": ("train_samples_per_second", "{:,.1f}"),
        "evaluation examples / s": ("eval_samples_per_second", "{:,.1f}"),
    }
    rows = {
        name: form.format(results[key]) for name, (key, form) in shown.items() if key in results
    }
    rows |= {name: str(path) for name, path in saved.items()}
    left = max(map(len, rows), default=0)
    lines = [f"{name:<{left}}  {value}" for name, value in rows.items()]
    rule = "-" * min(100, max(map(len, [title, *lines])))
    return "\n".join(["", title, rule, *lines, rule])
