"""Pictures of an experiment: learning curves, and paths over Rosenbrock's valley."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Label: the results of its seeds."""


def learning_curves(results: Results, path: Path) -> Path | None:
    """Training loss, score and DWMGrad's window over the steps; means over the seeds.

    A shade goes from the lowest to the highest seed. None, and no picture, without two points.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    found = [result for each in results.values() for result in each]
    if not any(_points(result, "loss") > 1 for result in found):
        return None
    axes_of = {"loss": "training loss", "score": found[0]["metric"], "window": "window (steps)"}
    present = [key for key in axes_of if any(_points(r, key) > 1 for r in found)]
    figure = Figure(figsize=(8, 2.6 * len(present) + 1.2), layout="constrained")
    axes = figure.subplots(len(present), sharex=True, squeeze=False)[:, 0]
    for axis, key in zip(axes, present, strict=True):
        for number, (label, each) in enumerate(results.items()):
            values = defaultdict(list)
            for result in each:
                for point in result["history"]:
                    if key in point:
                        values[point["step"]].append(point[key])
            if values:
                _draw(axis, values, label, f"C{number}")
        axis.set_ylabel(axes_of[key])
        axis.grid(alpha=0.3)
        axis.margins(x=0.01)
        if key == "loss" and _wide(found):
            axis.set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False)  # fmt: skip
    axes[-1].set_xlabel("step")
    figure.suptitle(found[0]["workload"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _points(result: Mapping[str, Any], key: str) -> int:
    return sum(key in point for point in result["history"])


def _draw(axis: Any, values: Mapping[int, list[float]], label: str, color: str) -> None:
    steps = sorted(values)
    means = [statistics.fmean(values[step]) for step in steps]
    few = len(steps) < 30
    axis.plot(steps, means, "o-" if few else "-", color=color, label=label, linewidth=1.2,
              markersize=3)  # fmt: skip
    low, high = [min(values[s]) for s in steps], [max(values[s]) for s in steps]
    axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


def _wide(found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the losses span more than three powers of ten."""
    losses = [p["loss"] for result in found for p in result["history"] if "loss" in p]
    return min(losses) > 0 and max(losses) > 1000 * min(losses)


def valley(results: Results, path: Path) -> Path:
    """The contour of Rosenbrock's function and each optimizer's path over it."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from experiments.workloads.rosenbrock import rosenbrock

    figure = Figure(figsize=(8, 6), layout="constrained")
    axis = figure.subplots()
    x, y = np.meshgrid(np.linspace(0.6, 1.6, 300), np.linspace(0.6, 2.3, 300))
    axis.contourf(
        x, y, rosenbrock(x, y) + 1e-6, levels=np.logspace(-4, 3, 22), norm=LogNorm(),
        cmap="Greys", alpha=0.6,
    )  # fmt: skip
    for label, found in results.items():
        if found:
            points = np.array(found[0]["path"])
            score = found[0]["score"]
            end = "diverged" if score is None else f"f = {score:.2g}"
            axis.plot(*points.T, linewidth=1.4, label=f"{label}: {end}")
            axis.plot(*points[-1], "o", color=axis.lines[-1].get_color(), markersize=4)
    axis.plot(1, 1, "k*", markersize=12)
    axis.set(xlim=(0.6, 1.6), ylim=(0.6, 2.3), xlabel="x", ylabel="y")
    axis.legend(frameon=True, loc="upper left")
    figure.suptitle("Rosenbrock's function; the star is the minimum")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
