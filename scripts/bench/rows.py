"""What both benchmarks share: a row that says why where it cannot run, and their arguments."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import output
from bench.optimizers import REFERENCE, TimedOptimizer
from bench.probes import compilations
from bench.shapes import Shapes
from bench.timing import Step, TooSlow, pairs, spread, warm_up, why_too_large

Row = dict[str, Any]


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


# ---- the command line ----


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of both benchmarks."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pairs", type=at_least(3), default=40, help="the pairs of steps in a row (default: 40)")
    about = "a row makes fewer pairs, but 3, rather than take longer (default: 120)"
    add("--row_seconds", type=_positive, default=120, help=about)
    about = "use no more memory than this (default: what is free)"
    add("--max_memory_gib", type=_positive, help=about)
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    devices = ["cpu", *(["cuda", *gpus] if gpus else [])]
    add("--device", choices=devices, default="cpu", help=f"of {', '.join(devices)}; default: cpu")
    add("--output", type=_file, help="write machine, versions, commit and rows as JSON")
    add("--plot", type=_file, help="draw the rows into this PNG (needs matplotlib)")
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


def _file(text: str) -> Path:
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it")
    return Path(text)


def run(
    work: Callable[[argparse.Namespace, dict[str, Any]], None],
    plot: Callable[[dict[str, Any]], Any],
    options: argparse.Namespace,
    results: dict[str, Any],
) -> int:
    """Does the work and writes what it found, after Ctrl-C too; returns the exit code."""
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        sys.exit("--plot needs matplotlib: pip install matplotlib")
    code = 0
    load, cores = results["machine"]["load_at_start"], results["machine"]["cores"]
    if load is not None and load > cores / 2:
        print(f"the load is {load:.1f} on {cores} cores: the times will not hold", file=sys.stderr)
    try:
        work(options, results)
    except KeyboardInterrupt:
        print(f"interrupted after {len(results['rows'])} rows", file=sys.stderr)
        code = 130
    output.write(options.output, results)
    if options.plot is not None:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(results).savefig(options.plot, dpi=120)
    return code
