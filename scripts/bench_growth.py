"""How the step's time grows with parameters and with tensors, and what the loss feed costs of it.

  python scripts/bench_growth.py --output growth.json --plot growth.png
  python scripts/bench_growth.py --parameters 10000 1000000 --tensors --pairs 10

DWMGrad's default kernel against torch's fused AdamW, in pairs in one process, as in bench_step.py.
The loss feed is `observe_loss(loss)` and what `step()` does with it before the kernel runs (on
several ranks also the all-reduce, which is not measured here), timed by itself because it is
smaller than the noise of a large step. As a check, pairs of steps with and without a loss of the
same optimizer.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from bench import program
from bench.optimizers import (
    DEFAULT,
    REFERENCE,
    STATES,
    Shapes,
    TimedOptimizer,
    dwmgrad_with,
    kernels_of,
)
from bench.program import Row
from bench.timing import milliseconds, pairs, spread
from glue.errors import run_cli

COLUMNS = (
    "parameters | tensors | DWMGrad ms (quartiles) | AdamW fused ms (quartiles) | "
    "ratio (quartiles) | loss feed µs (quartiles) | of the step | with - without a loss, µs"
)
TENSORS_OF_A_SIZE = 10


def cut(parameters: int, tensors: int) -> Shapes:
    """That many parameters in that many tensors of nearly one length."""
    length, rest = divmod(parameters, tensors)
    return [(length + (index < rest),) for index in range(tensors)]


def measure(timed: TimedOptimizer, shapes: Shapes, options: argparse.Namespace) -> Row:
    """Times steps of both, the loss feed, and steps with and without a loss."""
    device = options.device
    optimizer, step = timed.start(shapes, device)
    _, reference_step = REFERENCE.start(shapes, device)
    times = program.compare(step, reference_step, options)
    feed = spread(feed_times(optimizer, device))
    for group in optimizer.param_groups:
        group["missing_loss"] = "hold"
    with_loss, without = pairs(step, optimizer.step, times["pairs"], device)
    return {
        **times,
        "feed_ms": feed,
        "feed_share": feed["median"] / times["ms"]["median"],
        "with_minus_without_ms": spread([a - b for a, b in zip(with_loss, without, strict=True)]),
    }


def feed_times(optimizer: Any, device: str, count: int = 50) -> list[float]:
    """The milliseconds in which a loss gets in and becomes the step's number."""
    loss = torch.ones((), device=device, requires_grad=True)

    def feed() -> None:
        optimizer.observe_loss(loss)
        with torch.no_grad():
            observation = optimizer._feed.observation
            optimizer._agreed_on(observation)  # what step() does with it
            observation.use(optimizer.param_groups)

    return [milliseconds(feed, device) for _ in range(count + 5)][5:]


def work(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Measures all points; each is printed and written as it comes."""
    points = [("parameters", size, TENSORS_OF_A_SIZE) for size in options.parameters]
    points += [("tensors", options.total, number) for number in options.tensors]
    timed = dwmgrad_with(DEFAULT, options.state)
    results["kernels"] = sorted(kernels_of(timed, options.device))
    program.print_header(COLUMNS)
    for sweep, parameters, tensors in points:
        about = {"sweep": sweep, "parameters": parameters, "tensors": tensors}
        row = {**about, **program.attempt(timed, cut(parameters, tensors), options, measure)}
        program.keep(row, results, print_point, options)


def print_point(row: Row) -> None:
    """Prints a row in the table; one that could not run says why."""
    labels = [f"{row['parameters']:,}", f"{row['tensors']:,}"]
    if row["why_not"] is not None:
        return program.print_row(COLUMNS, labels, row["why_not"])
    cells = [program.with_quartiles(row[key]) for key in ("ms", "adamw_fused_ms", "ratio")]
    cells += [program.with_quartiles(row["feed_ms"], 1e3), f"{row['feed_share']:.2%}"]
    difference = program.with_quartiles(row["with_minus_without_ms"], 1e3)
    program.print_row(COLUMNS, labels, [*cells, difference])


def plot(results: dict[str, Any]) -> Any:
    """Draws time over parameters and over tensors, both axes logarithmic."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    curves = {
        "ms": ("DWMGrad", "o-", "tab:blue"),
        "adamw_fused_ms": ("AdamW, fused", "s-", "0.5"),
        "feed_ms": ("DWMGrad's loss feed alone", "^--", "tab:orange"),
    }
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, sweep in zip(axes, ("parameters", "tensors"), strict=True):
        rows = [r for r in results["rows"] if r["sweep"] == sweep and r["why_not"] is None]
        if not rows:  # nothing has no logarithm
            axis.set_visible(False)
            continue
        places = [row[sweep] for row in rows]
        for key, (label, style, color) in curves.items():
            axis.plot(places, [row[key]["median"] for row in rows], style, color=color, label=label)
            low, high = ([row[key]["quartiles"][side] for row in rows] for side in (0, 1))
            axis.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
        axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_xlabel(f"parameters, in {TENSORS_OF_A_SIZE} tensors")
    axes[1].set_xlabel(f"tensors, {results['settings']['total']:,} parameters in all")
    axes[0].set_ylabel("milliseconds a step (median, quartiles)")
    axes[0].legend(frameon=False)
    kernels = " and ".join(results["kernels"])
    subtitle = f"DWMGrad's kernel: {kernels}, state: {results['settings']['state']}"
    figure.suptitle(f"{program.title(results)}\n{subtitle}", fontsize=10)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Measures and writes what `argv` (default: the command line) asks for."""
    parser = program.parser_of(__doc__)
    sizes = [10**power for power in range(4, 10)]
    numbers = [1, 3, 10, 30, 100, 300, 1000, 2000]
    add = parser.add_argument
    for name, least, default, about in (
        ("parameters", TENSORS_OF_A_SIZE, sizes, f"in {TENSORS_OF_A_SIZE} tensors"),
        ("tensors", 1, numbers, "their number"),
    ):
        about += f" (default: {default[0]} to {default[-1]})"
        number = program.at_least(least)
        add(f"--{name}", nargs="*", type=number, default=default, metavar="N", help=about)
    about = "the parameters that --tensors share (default: 2000000)"
    add("--total", type=int, default=2_000_000, help=about)
    about = "DWMGrad's (default: float32)"
    add("--state", choices=STATES, default="float32", help=about)
    options = parser.parse_args(argv)
    if options.total < (most := max(options.tensors, default=1)):
        parser.error(f"--total must be at least {most}, the most of --tensors, got {options.total}")
    program.run(work, plot, options, "state", "total", "pairs", "row_seconds")


if __name__ == "__main__":
    run_cli(main)
