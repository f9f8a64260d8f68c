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
from bench.contenders import REFERENCE, Contender
from bench.probes import Compilations
from bench.shapes import Shapes
from bench.timing import GIB, Step, TooSlow, pairs, spread, warm_up, why_too_large

_compilations = Compilations()


def attempt(
    contender: Contender,
    shapes: Shapes,
    options: argparse.Namespace,
    measure: Callable[[Contender, Shapes, argparse.Namespace], dict[str, Any]],
) -> dict[str, Any]:
    """What `measure` finds; or, under the key `why_not`, why it cannot run here."""
    needed = contender.bytes_needed(shapes) + REFERENCE.bytes_needed(shapes)
    most = None if options.max_memory_gib is None else options.max_memory_gib * GIB
    try:
        why_not = contender.why_not(options.device)
        why_not = why_not or why_too_large(needed, options.device, most)
        if why_not is None:
            with contender.conditions():
                return {"why_not": None, **measure(contender, shapes, options)}
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


def compare(step: Step, reference_step: Step, options: argparse.Namespace) -> dict[str, Any]:
    """Times pairs of two steps, fewer than asked for where they would take too long."""
    round_ms = warm_up([step, reference_step], options.device, options.row_seconds)
    number = max(3, min(options.pairs, int(1e3 * options.row_seconds / round_ms)))
    compiled = _compilations.count()
    ours, theirs = pairs(step, reference_step, number, options.device)
    return {
        "pairs": number,
        "ms": spread(ours),
        "adamw_fused_ms": spread(theirs),
        "ratio": spread([a / b for a, b in zip(ours, theirs, strict=True)]),
        "recompilations": _compilations.count() - compiled,
    }


def add_common(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of both benchmarks."""
    add = parser.add_argument
    add("--pairs", type=int, default=40, help="the number of pairs in a row (default: 40)")
    add(
        "--row_seconds",
        type=float,
        default=120,
        help="a row makes fewer pairs rather than take longer, but 3 at least (default: 120)",
    )
    add("--max_memory_gib", type=float, help="use no more memory than this (default: what is free)")
    add("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    add("--output", type=Path, help="write machine, versions, commit and rows as JSON")
    add("--plot", type=Path, help="draw the rows into this PNG (needs matplotlib)")  # fmt: skip


def check_common(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program with a message if one of these arguments cannot be right."""
    if options.pairs < 3:
        parser.error(f"--pairs must be at least 3, for the quartiles, got {options.pairs}")
    for name in ("row_seconds", "max_memory_gib"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name} must be above 0, got {value}")
    kind, _, index = options.device.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        parser.error(f"--device must be cpu, cuda or cuda:N, got {options.device}")
    if kind == "cuda" and torch.cuda.device_count() <= int(index or 0):
        found = torch.cuda.device_count()
        parser.error(f"--device {options.device}: torch finds {found} GPUs; use --device cpu, say")
    for name in ("output", "plot"):
        path = getattr(options, name)
        if path is not None and path.is_dir():
            parser.error(f"--{name} {path} is a folder: name a file in it")
    if options.plot is not None and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")


def run(
    work: Callable[[argparse.Namespace, dict[str, Any]], None],
    plot: Callable[[Path, dict[str, Any]], None],
    options: argparse.Namespace,
    results: dict[str, Any],
) -> int:
    """Does the work and writes what it found; after Ctrl-C, what it found so far.

    Returns:
        The exit code.
    """
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
        plot(options.plot, results)
    return code
