"""Times the optimizer's step against torch's fused AdamW, in pairs in one process.

  python scripts/bench_step.py --output bench.json --plot bench.png
  python scripts/bench_step.py --shapes 100m lora --kernels native --states float32 --peers
  python scripts/bench_step.py --shapes --end_to_end --output training.json

Each pair makes both steps once, each optimizer on parameters and gradients of its own, in
alternating order; the ratio of a pair is that of the two times. Prints a Markdown table, row by
row. Bytes moved are those of the parameters (read and written), gradients (read) and state (read
and written), each once; "of copy_" and "of add_" are their rate as a share of what these operations
reach on 256 MiB in the same run. What fits into the processor's caches goes beyond 100 %. The JSON
also has the rate of `dot`, which only reads: a step with a limit reads 8 bytes a parameter more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import program
from bench.optimizers import (
    KERNELS,
    PEERS,
    REFERENCE,
    SHAPES,
    STATES,
    Shapes,
    TimedOptimizer,
    count,
    dwmgrad_with,
)
from bench.program import Row
from bench.timing import bandwidth, extra_memory, launches, spread, state_bytes, syncs
from environment import ROOT
from glue.errors import run_cli

COLUMNS = (
    "shapes | parameters | tensors | optimizer | kernel | state | ms (quartiles) | "
    "ratio to fused AdamW (quartiles) | MB moved | of copy_ | of add_ | launches | syncs | "
    "recompiled | extra MiB | state bytes/parameter"
)
TRAINED = {
    "dwmgrad": ["--optim", "dwmgrad_finetune", "--optim_args", ""],
    "adamw_fused": ["--optim", "adamw_torch_fused", "--optim_args", ""],
}
CONFIG = "configs/demo.yaml"
ALONE = "--do_eval false --eval_strategy no --plot false --disable_tqdm true --seed 0"
TRAINING = "training | DWMGrad samples/s | AdamW fused | ratio of times"


def measure(timed: TimedOptimizer, shapes: Shapes, options: argparse.Namespace) -> Row:
    """Times an optimizer against the reference, then looks at single steps."""
    device, parameters = options.device, count(shapes)
    optimizer, step = timed.start(shapes, device)
    _, reference_step = REFERENCE.start(shapes, device)
    times = program.compare(step, reference_step, options)
    state = state_bytes(optimizer)
    return {
        **times,
        "bytes_moved": 3 * 4 * parameters + 2 * state,  # parameters and gradients are float32
        "state_bytes_per_parameter": state / parameters,
        "extra_memory": extra_memory(step, device),
        "launches": launches(step, device),
        "syncs": syncs(step, device),
    }


def work(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Measures all rows; each is printed and written as it comes."""
    optimizers = [dwmgrad_with(name, state) for name in options.kernels for state in options.states]
    optimizers += [PEERS[name] for name in options.peers]
    if options.shapes:
        program.print_header(COLUMNS)
    for name in options.shapes:
        shapes, rates = SHAPES[name](), bandwidth(options.device)
        for timed in optimizers:
            row: Row = {
                **{"shapes": name, "parameters": count(shapes), "tensors": len(shapes)},
                **{key: getattr(timed, key) for key in ("optimizer", "kernel", "state")},
                **{f"{kind}_gb_per_second": rate for kind, rate in rates.items()},
                **program.attempt(timed, shapes, options, measure),
            }
            if row["why_not"] is None:
                rate = row["bytes_moved"] / row["ms"]["median"] / 1e6
                row |= {f"share_of_{kind}": rate / rates[kind] for kind in ("copy", "add")}
            program.keep(row, results, print_step, options)
    if options.end_to_end:
        row = end_to_end(options.rounds, options.max_steps, options.device)
        results["end_to_end"] = row
        print()
        program.print_header(TRAINING)
        keys = ("dwmgrad_samples_per_second", "adamw_fused_samples_per_second", "ratio")
        cells = row["why_not"] or [program.with_quartiles(row[key]) for key in keys]
        program.print_row(TRAINING, [f"{row['config']}, {row['max_steps']} steps"], cells)


def print_step(row: Row) -> None:
    """Prints a row in the table; one that could not run says why."""
    labels = [row["shapes"], f"{row['parameters']:,}", str(row["tensors"])]
    labels += [row["optimizer"], row["kernel"], row["state"]]
    if row["why_not"] is not None:
        return program.print_row(COLUMNS, labels, row["why_not"])
    cells = [program.with_quartiles(row[key]) for key in ("ms", "ratio")]
    cells += [f"{row['bytes_moved'] / 1e6:,.1f}"]
    cells += [f"{row[key]:.0%}" for key in ("share_of_copy", "share_of_add")]
    cells += ["-" if row[key] is None else str(row[key]) for key in ("launches", "syncs")]
    extra = row["extra_memory"]
    cells += [str(row["recompilations"]), "-" if extra is None else f"{extra / 2**20:.2f}"]
    program.print_row(COLUMNS, labels, [*cells, f"{row['state_bytes_per_parameter']:.2f}"])


def end_to_end(rounds: int, max_steps: int, device: str) -> dict[str, Any]:
    """Trains the demo in turn with both optimizers, each time in a process of its own.

    A `device` that is not "cpu" is the GPU that the Trainer takes by itself. The row has samples
    per second, and the ratio of the times of each round.
    """
    row: dict[str, Any] = {"config": CONFIG, "max_steps": max_steps, "rounds": rounds, "seed": 0}
    common = [*ALONE.split(), "--max_steps", str(max_steps), "--use_cpu", str(device == "cpu")]
    speeds: dict[str, list[float]] = {name: [] for name in TRAINED}
    for _ in range(rounds):
        for name, words in TRAINED.items():
            speed = _train([*words, *common])
            if isinstance(speed, str):
                return {**row, "why_not": f"{name}: {speed}"}
            speeds[name].append(speed)
    ratios = [theirs / ours for ours, theirs in zip(*speeds.values(), strict=True)]
    spreads = {f"{name}_samples_per_second": spread(found) for name, found in speeds.items()}
    return {**row, "why_not": None, **spreads, "ratio": spread(ratios)}


def _train(words: list[str]) -> float | str:
    """The samples per second of one training, or why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "scripts/run_glue.py", CONFIG, *words, "--output_dir", folder]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        results = json.loads(Path(folder, "all_results.json").read_text())
        return results["train_samples_per_second"]


def plot(results: dict[str, Any]) -> Any:
    """Draws the ratio of each row, with its quartiles, and a line at 1."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    rows = [row for row in results["rows"] if row["why_not"] is None]
    ratios = [row["ratio"]["median"] for row in rows]
    errors = [
        [abs(r["ratio"]["quartiles"][side] - r["ratio"]["median"]) for r in rows] for side in (0, 1)
    ]
    figure = Figure(figsize=(9, 1.4 + 0.3 * max(len(rows), 3)), layout="constrained")
    axis = figure.subplots()
    axis.set_xscale("log" if max(ratios, default=1) > 10 else "linear")
    colors = ["tab:blue" if row["optimizer"] == "DWMGrad" else "0.7" for row in rows]
    error_style = {"ecolor": "0.3", "capsize": 2}
    bars = axis.barh(range(len(rows)), ratios, color=colors, xerr=errors, error_kw=error_style)
    axis.bar_label(bars, fmt="%.2f", padding=4, fontsize=8)
    for place in range(1, len(rows)):
        if rows[place - 1]["shapes"] != rows[place]["shapes"]:
            axis.axhline(place - 0.5, color="0.8", linewidth=0.8)
    labels = ["{shapes}: {optimizer}, {kernel}, {state} state".format(**row) for row in rows]
    axis.set_yticks(range(len(rows)), [each.replace(", own", "") for each in labels], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.margins(x=0.1)
    axis.axvline(1, color="tab:red", linewidth=1)
    axis.set_xlabel("time of a step / that of torch.optim.AdamW(fused=True); median and quartiles")
    axis.set_title(program.title(results), fontsize=10)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Measures and writes what `argv` (default: the command line) asks for."""
    parser = program.parser_of(__doc__)
    add = parser.add_argument
    most = [name for name in SHAPES if name != "tiny"]
    for name, number, choices, default, about in (
        ("shapes", "*", SHAPES, most, "default: all but tiny; none: no steps are timed"),
        ("kernels", "*", KERNELS, list(KERNELS), "DWMGrad's kernels; default: all"),
        ("states", "+", STATES, list(STATES), "the precision of DWMGrad's state; default: all"),
        ("peers", "*", PEERS, list(PEERS), "other optimizers; default: all"),
    ):
        about = f"of {', '.join(choices)}; {about}"
        add(f"--{name}", nargs=number, choices=choices, default=default, metavar="NAME", help=about)
    about = "also train configs/demo.yaml with DWMGrad and with fused AdamW, in turn"
    add("--end_to_end", action="store_true", help=about)
    about = "trainings of each for --end_to_end (default: 3)"
    add("--rounds", type=program.at_least(1), default=3, help=about)
    about = "the steps of a training (default: 200)"
    add("--max_steps", type=program.at_least(1), default=200, help=about)
    program.run(work, plot, parser.parse_args(argv), "pairs", "row_seconds")


if __name__ == "__main__":
    run_cli(main)
