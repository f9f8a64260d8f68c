"""What both benchmarks are made of: arguments, rows that say why they cannot run, and output."""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from atomic import check_output, write_json
from environment import ROOT
from glue.errors import UsageError, UsageParser
from provenance import machine, versions

from bench.optimizers import REFERENCE, Shapes, TimedOptimizer
from bench.timing import Step, TooSlow, compilations, pairs, spread, warm_up, why_too_large

PACKAGES = "triton bitsandbytes torchao torch-optimi schedulefree transformers".split()
Row = dict[str, Any]

# ---- the command line ----


def parser_of(description: str | None) -> UsageParser:
    """A parser with the arguments of both benchmarks."""
    parser = UsageParser(description=description)
    add = parser.add_argument
    add("--pairs", type=at_least(3), default=40, help="the pairs of steps in a row (default: 40)")
    about = "a row makes fewer pairs, but 3, rather than take longer (default: 120)"
    add("--row_seconds", type=_positive, default=120, help=about)
    about = "use no more memory than this (default: what is free)"
    add("--max_memory_gib", type=_positive, help=about)
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = ["cpu", *(["cuda", *gpus] if gpus else [])]
    add("--device", choices=devices, default="cpu", help=f"of {', '.join(devices)}; default: cpu")
    add("--output", type=Path, help="write machine, versions, commit and rows as JSON")
    add("--plot", type=Path, help="draw the rows into this PNG (needs matplotlib)")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """For argparse: a whole number that is not smaller."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return number


def _positive(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return float(text)


def run(
    work: Callable[[argparse.Namespace, dict[str, Any]], None],
    plot: Callable[[dict[str, Any]], Any],
    options: argparse.Namespace,
    *settings: str,
) -> None:
    """Does the work and writes what it found, after Ctrl-C too.

    `work` adds rows to the results, which come with machine, versions, commit and those of the
    command line's options that `settings` names; `plot` makes a figure of them.
    """
    if options.output is not None:
        check_output(options.output)
    if options.plot is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        kinds = FigureCanvasBase.get_supported_filetypes()
        if options.plot.suffix and options.plot.suffix[1:].lower() not in kinds:
            names = ", .".join(kinds)
            raise UsageError(f"--plot {options.plot}: its name must end in one of .{names}")
        check_output(options.plot, "--plot")
    found = machine_at(options.device)
    libraries = {**dict.fromkeys(PACKAGES), **versions(*PACKAGES)}  # None: not installed
    libraries |= {"torch": torch.__version__, "cuda": torch.version.cuda}  # with the build
    results: dict[str, Any] = {
        **{"machine": found, "versions": libraries, "commit": commit()},
        **{"settings": {name: getattr(options, name) for name in settings}, "rows": []},
    }
    load, cores = found["load_at_start"], found["cores"]
    if load is not None and load > cores / 2:
        print(f"the load is {load:.1f} on {cores} cores: the times will not hold", file=sys.stderr)
    try:
        work(options, results)
    except KeyboardInterrupt:
        print(f"interrupted after {len(results['rows'])} rows", file=sys.stderr)
        raise
    finally:
        write(options.output, results)
        if options.plot is not None and results["rows"]:
            plot(results).savefig(options.plot, dpi=120)


# ---- rows ----


def attempt(
    timed: TimedOptimizer,
    shapes: Shapes,
    options: argparse.Namespace,
    measure: Callable[[TimedOptimizer, Shapes, argparse.Namespace], Row],
) -> Row:
    """What `measure` finds; or, under the key `why_not`, why it cannot run here."""
    needed = timed.bytes_needed(shapes) + REFERENCE.bytes_needed(shapes)
    try:
        why_not = timed.why_not(options.device)
        why_not = why_not or why_too_large(needed, options.device, options.max_memory_gib)
        if why_not is None:
            with timed.conditions():
                return {"why_not": None, **measure(timed, shapes, options)}
    except TooSlow:
        why_not = f"its first three steps take longer than --row_seconds {options.row_seconds:g}"
    except Exception as error:  # whatever a library may raise, the next row can be measured
        text = str(error).strip().splitlines() or [""]
        why_not = f"failed: {type(error).__name__}: {text[0][:200]}"
    finally:
        gc.collect()
        if options.device != "cpu":
            torch.cuda.empty_cache()
    return {"why_not": why_not}


def compare(step: Step, reference_step: Step, options: argparse.Namespace) -> Row:
    """Times pairs of two steps, fewer than asked for where they would take too long."""
    round_ms = warm_up([step, reference_step], options.device, options.row_seconds)
    number = max(3, min(options.pairs, int(1e3 * options.row_seconds / round_ms)))
    compiled = compilations()
    ours, theirs = pairs(step, reference_step, number, options.device)
    return {
        "pairs": number,
        "ms": spread(ours),
        "adamw_fused_ms": spread(theirs),
        "ratio": spread([a / b for a, b in zip(ours, theirs, strict=True)]),
        "recompilations": compilations() - compiled,
    }


# ---- where and with what ----


def machine_at(device: str) -> dict[str, Any]:
    """`provenance.machine()`, with the memory, the device and the load."""
    found = None
    with suppress(OSError):
        found = re.search(r"^MemTotal:\s*(.*)$", Path("/proc/meminfo").read_text(), re.M)
    return {
        **machine(),
        "device": device,
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "memory": found and found[1],
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether src/ or scripts/ differ from it; None outside of git."""
    found = []
    for command in ("git rev-parse HEAD", "git status --porcelain src scripts"):
        with suppress(OSError, subprocess.CalledProcessError):
            output = subprocess.check_output(command.split(), cwd=ROOT, stderr=subprocess.DEVNULL)
            found.append(output.decode().strip())
    head, changes = found if len(found) == 2 else (None, None)
    return {"id": head, "changed": None if changes is None else bool(changes)}


def title(results: dict[str, Any]) -> str:
    """Where and with what, in a line."""
    found = results["machine"]
    name = found["gpu"] or f"{found['processor']}, {found['threads']} thread(s)"
    return f"{name}, torch {results['versions']['torch']}"


# ---- output ----


def keep(
    row: Row, results: dict[str, Any], show: Callable[[Row], None], options: argparse.Namespace
) -> None:
    """Adds a row to the results, prints it, and writes what there is so far."""
    results["rows"].append(row)
    show(row)
    write(options.output, results)


def write(path: Path | None, results: dict[str, Any]) -> None:
    """Writes a result file, whole or not at all."""
    if path is not None:
        write_json(path, results, indent=2)


def print_header(columns: str) -> None:
    """Prints the first two lines of a Markdown table; `columns` are separated by " | "."""
    print(f"| {columns} |\n|{'---|' * (columns.count(' | ') + 1)}", flush=True)


def print_row(columns: str, labels: list[str], cells: list[str] | str) -> None:
    """Prints one line of a Markdown table: its labels, then cells or why there are none."""
    if isinstance(cells, str):
        cells = [cells, *["-"] * (columns.count(" | ") - len(labels))]
    print(f"| {' | '.join(cell.replace('|', '/') for cell in [*labels, *cells])} |", flush=True)


def with_quartiles(values: dict[str, Any], factor: float = 1) -> str:
    """A median with its quartiles, in three digits."""
    low, high = values["quartiles"]
    return f"{factor * values['median']:.3g} ({factor * low:.3g} to {factor * high:.3g})"
