"""Pictures: an experiment's curves, scores over learning rates, paths over a valley."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.compact import CURVES
from experiments.evidence.results import Result
from experiments.table import SHARES, score_head
from experiments.workloads.rosenbrock import rosenbrock

# the same everywhere, whoever takes part: those that are judged stand out from the others
_STRONG = {
    **{"adamw": "black", "dwmgrad-finetune": "tab:red", "dwmgrad-decrease": "tab:blue"},
    **{"dwmgrad-auto": "tab:orange", "dwmgrad-capped": "tab:green"},
}
_FAINT = {
    **{"schedule-free-adamw": "tab:cyan", "adamw-control": "tab:gray"},
    **{"momo-adam": "tab:purple", "prodigy": "tab:pink", "prodigy-corrected": "tab:brown"},
}


def draw_experiment(result: Result, curves: Path, paths: Path) -> list[Path]:
    """An experiment's curves, and its runs' paths over the valley where all have one; the files.

    There are no curves without two points.
    """
    runs = result.all_runs
    drawn = [learning_curves(result, curves)]
    if len(runs) and runs.path.map(bool).all():
        drawn.append(valley(result, paths))
    return [path for path in drawn if path]


def learning_curves(result: Result, path: Path) -> Path | None:
    """Training loss, score and DWMGrad's window over the steps; means over the seeds.

    A shade goes from the lowest to the highest seed. None, and no picture, without two points.
    """
    rows = [
        {"label": run["of"], "run": number, "step": step, key: value}
        for number, run in enumerate(result.all_runs.to_dict("records"))
        for name, key in CURVES.items()
        for step, value in run[name]
    ]
    points = pd.DataFrame(rows, columns=["label", "run", "step", "loss", "score", "window"])
    counts = points.groupby("run").count()
    if not (counts.loss > 1).any():
        return None
    heads = {"loss": "training loss", "score": result.metric, "window": "window (steps)"}
    present = [key for key in heads if (counts[key] > 1).any()]
    figure = _figure(8, 2.6 * len(present) + 1.2)
    axes = figure.subplots(len(present), sharex=True, squeeze=False)[:, 0]
    for axis, key in zip(axes, present, strict=True):
        for number, label in enumerate(result.entries):
            values = points[points.label == label].dropna(subset=key).groupby("step")[key]
            if not len(values):
                continue
            steps, color = list(values.groups), f"C{number}"
            style = {"color": color, "linewidth": 1.2, "markersize": 3, "label": label}
            axis.plot(steps, values.mean(), "o-" if len(steps) < 30 else "-", **style)
            shade = {"color": color, "alpha": 0.15, "linewidth": 0}
            axis.fill_between(steps, values.min(), values.max(), **shade)
        axis.set_ylabel(heads[key])
        axis.grid(alpha=0.3)
        axis.margins(x=0.01)
        if key == "loss" and 0 < 1000 * points.loss.min() < points.loss.max():
            axis.set_yscale("log")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    axes[-1].set_xlabel("step")
    return _save(figure, path, result.data["workload"], 120)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path, title: str, dpi: int) -> Path:
    figure.suptitle(title)
    figure.savefig(path, dpi=dpi)
    return path


def valley(result: Result, path: Path) -> Path:
    """The contour of Rosenbrock's function and each optimizer's path over it."""
    from matplotlib.colors import LogNorm

    figure = _figure(8, 6)
    axis = figure.subplots()
    x, y = np.meshgrid(np.linspace(0.6, 1.6, 300), np.linspace(0.6, 2.3, 300))
    levels, style = np.logspace(-4, 3, 22), {"cmap": "Greys", "alpha": 0.6}
    axis.contourf(x, y, rosenbrock(x, y) + 1e-6, levels=levels, norm=LogNorm(), **style)
    for label, run in result.all_runs.drop_duplicates("of").set_index("of").iterrows():
        points = np.array(run.path)
        end = "diverged" if np.isnan(run.score) else f"f = {run.score:.2g}"
        (line,) = axis.plot(*points.T, linewidth=1.4, label=f"{label}: {end}")
        axis.plot(*points[-1], "o", color=line.get_color(), markersize=4)
    axis.plot(1, 1, "k*", markersize=12)
    axis.set(xlim=(0.6, 1.6), ylim=(0.6, 2.3), xlabel="x", ylabel="y")
    axis.legend(frameon=True, loc="upper left")
    return _save(figure, path, "Rosenbrock's function; the star is the minimum", 120)


def rate_curves(runs: pd.DataFrame, record: Mapping[str, Any], path: Path) -> Path:
    """Mean scores over the learning rates, a line an optimizer.

    `runs`: see `evidence.compared.Compared.rates`.
    """
    figure = _figure(8, 4.4)
    axis = figure.subplots()
    factor = 100 if record["metric"] in SHARES else 1
    rates = runs.lr[~runs.rateless]
    for name, own in runs.groupby("of", sort=False):
        means = factor * own.groupby("lr").score.mean()
        if own.rateless.iloc[0]:
            means = pd.Series([means.iloc[0]] * 2, [rates.min(), rates.max()])
        style = {"color": _STRONG[name], "linewidth": 2.2, "zorder": 3} if name in _STRONG else {}
        style = style or {"color": _FAINT.get(str(name)), "linewidth": 1.1, "zorder": 2}
        form = "--" if own.rateless.iloc[0] else "o-"
        axis.plot(means.index, means, form, markersize=4, label=own.title.iloc[0], **style)
    axis.set_xscale("log")
    if not record["higher_is_better"]:
        axis.set_yscale("log")
    axis.set(
        xlabel="learning rate", ylabel=score_head(record["metric"], record["higher_is_better"])
    )
    axis.grid(alpha=0.3)
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return _save(figure, path, record["title"], 110)
