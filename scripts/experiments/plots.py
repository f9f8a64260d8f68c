"""Pictures: an experiment's curves, a comparison's, and paths over Rosenbrock's valley."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.stats import trailing_means
from experiments.table import SHARES, score_head
from experiments.workloads.rosenbrock import rosenbrock

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Label: the results of its seeds."""

# the same everywhere, whoever takes part: those that are judged stand out from the others
_STRONG = {
    **{"adamw": "black", "dwmgrad-finetune": "tab:red", "dwmgrad-decrease": "tab:blue"},
    "dwmgrad-auto": "tab:orange",
}
_FAINT = {
    **{"dwmgrad-increase": "tab:cyan", "dwmgrad-loss": "tab:purple", "adam": "tab:gray"},
    **{"sgd": "tab:olive", "rmsprop": "tab:brown", "schedule-free-adamw": "tab:green"},
    **{"adamw-control": "tab:gray", "momo-adam": "tab:purple", "prodigy": "tab:pink"},
}


def learning_curves(results: Results, path: Path) -> Path | None:
    """Training loss, score and DWMGrad's window over the steps; means over the seeds.

    A shade goes from the lowest to the highest seed. None, and no picture, without two points.
    """
    found = [(label, run) for label, each in results.items() for run in each]
    rows = [
        {"label": label, "run": number, **point}
        for number, (label, run) in enumerate(found)
        for point in run["history"]
    ]
    points = pd.DataFrame(rows, columns=["label", "run", "step", "loss", "score", "window"])
    counts = points.groupby("run").count()
    if not (counts.loss > 1).any():
        return None
    heads = {"loss": "training loss", "score": found[0][1]["metric"], "window": "window (steps)"}
    present = [key for key in heads if (counts[key] > 1).any()]
    figure = _figure(8, 2.6 * len(present) + 1.2)
    axes = figure.subplots(len(present), sharex=True, squeeze=False)[:, 0]
    for axis, key in zip(axes, present, strict=True):
        for number, label in enumerate(results):
            values = points[points.label == label].dropna(subset=key).groupby("step")[key]
            style = {"color": f"C{number}", "linewidth": 1.2, "markersize": 3}
            if len(values):
                _band(axis, values, "o-" if len(values) < 30 else "-", True, label=label, **style)
        axis.set_ylabel(heads[key])
        axis.grid(alpha=0.3)
        axis.margins(x=0.01)
        if key == "loss" and 0 < 1000 * points.loss.min() < points.loss.max():
            axis.set_yscale("log")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    axes[-1].set_xlabel("step")
    return _save(figure, path, found[0][1]["workload"], 120)


def _band(axis: Any, values: Any, form: str, shade: bool, **style: Any) -> None:
    """The mean of values that are grouped by their step, and a shade from the least to the most."""
    steps = list(values.groups)
    axis.plot(steps, values.mean(), form, **style)
    if shade:
        low, high = values.min(), values.max()
        axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path, title: str, dpi: int) -> Path:
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path


def valley(results: Results, path: Path) -> Path:
    """The contour of Rosenbrock's function and each optimizer's path over it."""
    from matplotlib.colors import LogNorm

    figure = _figure(8, 6)
    axis = figure.subplots()
    x, y = np.meshgrid(np.linspace(0.6, 1.6, 300), np.linspace(0.6, 2.3, 300))
    levels, style = np.logspace(-4, 3, 22), {"cmap": "Greys", "alpha": 0.6}
    axis.contourf(x, y, rosenbrock(x, y) + 1e-6, levels=levels, norm=LogNorm(), **style)
    for label, found in results.items():
        if found:
            points = np.array(found[0]["path"])
            score = found[0]["score"]
            end = "diverged" if score is None else f"f = {score:.2g}"
            (line,) = axis.plot(*points.T, linewidth=1.4, label=f"{label}: {end}")
            axis.plot(*points[-1], "o", color=line.get_color(), markersize=4)
    axis.plot(1, 1, "k*", markersize=12)
    axis.set(xlim=(0.6, 1.6), ylim=(0.6, 2.3), xlabel="x", ylabel="y")
    axis.legend(frameon=True, loc="upper left")
    return _save(figure, path, "Rosenbrock's function; the star is the minimum", 120)


def comparison_curves(measured: Any, path: Path) -> Path | None:
    """Which learning rates work, and what the training loss does; None where nothing was run.

    Args:
        measured: an `evidence.measures.Measured`.
        path: the picture.
    """
    names = [name for name in measured.names if len(measured.runs(name, "trials"))]
    if not names:
        return None
    names.sort(key=lambda name: name in _STRONG)  # the strong ones are drawn last, on top
    faint = {"linewidth": 1, "alpha": 0.75, "zorder": 2}
    styles = {
        name: {"color": _STRONG[name], "linewidth": 2.2, "zorder": 3}
        if name in _STRONG
        else {"color": _FAINT.get(name, f"C{number}"), **faint}
        for number, name in enumerate(names)
    }
    figure = _figure(11, 4.8)
    left, right = figure.subplots(1, 2)
    _rates(left, measured, styles)
    _losses(right, measured, styles)
    lines = [line for line in left.lines[::-1] if not line.get_label().startswith("_")]
    lines.sort(key=lambda line: line.get_linestyle() != "-")  # contenders, then the dashed mark
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _save(figure, path, measured.title, 110)


def rate_curves(runs: pd.DataFrame, record: Mapping[str, Any], path: Path) -> Path:
    """Mean scores over the learning rates, a line an optimizer; `runs`: see `rates.frame`."""
    figure = _figure(8, 4.4)
    axis = figure.subplots()
    factor = 100 if record["metric"] in SHARES else 1
    rates = runs.lr[~runs.rateless]
    for name, own in runs.groupby("contender", sort=False):
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


def _rates(axis: Any, measured: Any, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """The trials of the tuning; a cross for each that diverged."""
    metric, higher = measured.metric, measured.higher
    factor = 100 if metric in SHARES else 1
    strong = []
    for name, style in styles.items():
        tried = measured.tried(name)
        good = tried.dropna(subset="score").sort_values(["lr", "score"])
        label = measured.label(name)
        axis.plot(good.lr, factor * good.score, "o-", markersize=4, label=label, **style)
        lost = tried.lr[tried.score.isna()]
        cross = {"markersize": 8, "markeredgewidth": 2, "color": style["color"]}
        height = [0.02 if higher else 0.98] * len(lost)
        where = axis.get_xaxis_transform()
        axis.plot(lost, height, "x", label=f"_{name}", transform=where, **cross)
        if name in _STRONG:
            strong += list(factor * measured.runs(name, "trials").score.dropna())
    if math.isfinite(measured.mark):
        label = "AdamW's best trial less the tolerance"
        axis.axhline(factor * measured.mark, color="black", ls="--", linewidth=1, label=label)
    axis.set_xscale("log")
    _log_if_wide(axis)
    if len(set(strong)) > 1:  # far worse others would press all flat
        (bottom, top), room = axis.get_ylim(), 0.05 * (max(strong) - min(strong))
        low, high = max(bottom, min(strong) - room), min(top, max(strong) + room)
        axis.set_ylim((low, top) if higher else (bottom, high))
    axis.set(xlabel="learning rate", ylabel=score_head(metric, higher))
    title = "trials of the tuning; a cross: diverged;\nwhat is far worse leaves the frame"
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)


def _losses(axis: Any, measured: Any, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """The training losses at each one's best learning rate."""
    for name, style in styles.items():
        runs = measured.runs(name, "seeds")
        points = [
            point
            for losses in runs.losses[~runs.diverged]
            for point in trailing_means(losses, measured.data["steps"])
        ]
        values = pd.DataFrame(points, columns=["step", "loss"]).groupby("step").loss
        if points:  # more shades than these would hide each other
            _band(axis, values, "-", name in _STRONG, label=measured.label(name), **style)
    if not axis.lines:
        axis.text(0.5, 0.5, "not run", ha="center", va="center", transform=axis.transAxes)
    _log_if_wide(axis)
    axis.set(xlabel="step", ylabel="training loss")
    title = (
        "tuned: trailing mean over 5 % of the steps,\nmean over the seeds, shade from low to high"
    )
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3, which="both")
    axis.margins(x=0.01)


def _log_if_wide(axis: Any) -> None:
    """A log axis where the curves span more than a power of ten."""
    lines = [line for line in axis.lines if line.get_transform() == axis.transData]
    values = [float(y) for line in lines for y in line.get_ydata()]
    if values and 0 < 10 * min(values) < max(values):
        from matplotlib.ticker import LogFormatter

        class Plain(LogFormatter):
            """0.2, not 2 x 10^-1, where matplotlib finds room for a label."""

            def __call__(self, x: float, pos: Any = None) -> str:
                return f"{x:g}" if super().__call__(x, pos) else ""

        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(Plain())
        axis.yaxis.set_minor_formatter(Plain())
