"""A comparison's picture: which learning rates work, and what the training loss does."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from experiments.evidence.measures import ADAMW, Comparison
from experiments.evidence.words import NOT_RUN
from experiments.stats import trailing_means
from experiments.table import SHARES

# the same everywhere, whoever takes part: those that are judged stand out from the others
_STRONG = {ADAMW: "black", "dwmgrad-finetune": "tab:red", "dwmgrad-decrease": "tab:blue"}
_FAINT = {
    "dwmgrad-increase": "tab:cyan", "dwmgrad-loss": "tab:purple", "adam": "tab:gray",
    "sgd": "tab:olive", "rmsprop": "tab:brown", "schedule-free-adamw": "tab:green",
}  # fmt: skip


def draw(comparison: Comparison, path: Path) -> bool:
    """Write the picture; False, and none, where nothing was run."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    names = [n for n in comparison.names if comparison.runs(n, "trials")]
    if not names:
        return False
    names.sort(key=lambda name: name in _STRONG)  # the strong ones are drawn last, on top
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _rates(left, comparison, names)
    _losses(right, comparison, names)
    lines = [line for line in left.lines[::-1] if not line.get_label().startswith("_")]
    lines.sort(key=lambda line: line.get_linestyle() != "-")  # contenders, then the dashed mark
    figure.legend(handles=lines, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(comparison.result.title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return True


def _style(name: str, number: int) -> dict[str, Any]:
    if name in _STRONG:
        return {"color": _STRONG[name], "linewidth": 2.2, "zorder": 3}
    return {"color": _FAINT.get(name, f"C{number}"), "linewidth": 1, "alpha": 0.75, "zorder": 2}


def _rates(axis: Any, comparison: Comparison, names: list[str]) -> None:
    factor = 100 if comparison.metric in SHARES else 1
    for number, name in enumerate(names):
        trials = sorted((run["lr"], run["score"]) for run in comparison.tried(name)
                        if run["score"] is not None)  # fmt: skip
        style = _style(name, number)
        points = [(lr, factor * score) for lr, score in trials]
        axis.plot(*zip(*points, strict=True) if points else ([], []), "o-", markersize=4,
                  label=comparison.title(name), **style)  # fmt: skip
        lost = [run["lr"] for run in comparison.tried(name) if run["score"] is None]
        base = 0.02 if comparison.higher else 0.98
        axis.plot(lost, [base] * len(lost), "x", markersize=8, markeredgewidth=2,
                  color=style["color"], transform=axis.get_xaxis_transform(),
                  label=f"_{name}")  # fmt: skip
    if comparison.mark is not None:
        axis.axhline(factor * comparison.mark, color="black", linestyle="--", linewidth=1,
                     label="AdamW's best trial less the tolerance")  # fmt: skip
    axis.set_xscale("log")
    _log_if_wide(axis)
    _fit(axis, [factor * run["score"] for name in names for run in comparison.runs(name, "trials")
                if name in _STRONG and run["score"] is not None], comparison.higher)  # fmt: skip
    share = ", %" if factor == 100 else ""
    arrow = "higher" if comparison.higher else "lower"
    axis.set(xlabel="learning rate", ylabel=f"{comparison.metric}{share} ({arrow} is better)")
    axis.set_title(
        "trials of the tuning; a cross: diverged;\nwhat is far worse leaves the frame", fontsize=10
    )
    axis.grid(alpha=0.3)


def _fit(axis: Any, strong: list[float], higher: bool) -> None:
    """End the axis at the worst of the strong: far worse others would press all flat."""
    if len(set(strong)) < 2:
        return
    bottom, top = axis.get_ylim()
    worst = min(strong) if higher else max(strong)
    room = 0.05 * (max(strong) - min(strong))
    if higher:
        axis.set_ylim(bottom=max(bottom, worst - room))
    else:
        axis.set_ylim(top=min(top, worst + room))


def _losses(axis: Any, comparison: Comparison, names: list[str]) -> None:
    for number, name in enumerate(names):
        values = defaultdict(list)
        for run in comparison.runs(name, "seeds"):
            if not run["diverged"]:
                for step, loss in trailing_means(run.get("losses") or [], comparison.budget):
                    values[step].append(loss)
        if not values:
            continue
        steps, style = sorted(values), _style(name, number)
        means = [statistics.fmean(values[step]) for step in steps]
        axis.plot(steps, means, label=comparison.title(name), **style)
        if name in _STRONG:  # more shades than these would hide each other
            low, high = [min(values[s]) for s in steps], [max(values[s]) for s in steps]
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
    if not axis.lines:
        axis.text(0.5, 0.5, NOT_RUN, ha="center", va="center", transform=axis.transAxes)
    _log_if_wide(axis)
    axis.set(xlabel="step", ylabel="training loss")
    axis.set_title(
        "tuned: trailing mean over 5 % of the steps,\nmean over the seeds, shade from low to high",
        fontsize=10,
    )
    axis.grid(alpha=0.3, which="both")
    axis.margins(x=0.01)


def _log_if_wide(axis: Any) -> None:
    """A log axis where the curves span more than a power of ten."""
    values = [float(y) for line in axis.lines if line.get_transform() == axis.transData
              for y in line.get_ydata()]  # fmt: skip
    if values and min(values) > 0 and max(values) > 10 * min(values):
        from matplotlib.ticker import LogFormatter

        class Plain(LogFormatter):
            """0.2, not 2 x 10^-1, where matplotlib finds room for a label."""

            def __call__(self, x: float, pos: Any = None) -> str:
                return f"{x:g}" if super().__call__(x, pos) else ""

        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(Plain())
        axis.yaxis.set_minor_formatter(Plain())
