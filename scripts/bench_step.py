"""Times the optimizer's step against torch's fused AdamW, in pairs in one process.

  python scripts/bench_step.py --output bench.json --plot bench.png
  python scripts/bench_step.py --shapes 100m lora --kernels native --states float32 --peers
  python scripts/bench_step.py --shapes --end_to_end --output training.json

Each pair makes both steps once, each optimizer on parameters and gradients of its own, in
alternating order; the ratio of a pair is that of the two times. Prints a Markdown table, row by
row. Bytes moved are those of the parameters (read and written), gradients (read) and state (read
and written), each once; "of copy_" and "of add_" are their rate as a share of what these operations
reach on 256 MiB in the same run. What fits into the processor's caches goes beyond 100 %.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bench import output
from bench.contenders import KERNELS, PEERS, REFERENCE, STATES, Contender, dwmgrad_with
from bench.end_to_end import end_to_end
from bench.probes import extra_memory, launches, state_bytes, syncs
from bench.rows import add_common, attempt, check_common, compare, run
from bench.shapes import SHAPES, Shapes, count
from bench.timing import Bandwidth


def measure(contender: Contender, shapes: Shapes, options: argparse.Namespace) -> dict[str, Any]:
    """Times a contender against the reference, then looks at single steps."""
    device, parameters = options.device, count(shapes)
    optimizer, step = contender.start(shapes, device)
    _, reference_step = REFERENCE.start(shapes, device)
    times = compare(step, reference_step, options)
    state = state_bytes(optimizer)
    return {
        **times,
        "bytes_moved": 3 * 4 * parameters + 2 * state,  # parameters and gradients are float32
        "state_bytes_per_parameter": state / parameters,
        "extra_memory": extra_memory(step, device),
        "launches": launches(step, device),
        "syncs": syncs(step, device),
    }


def contenders(options: argparse.Namespace) -> list[Contender]:
    """What the command line asks for."""
    ours = [dwmgrad_with(kernel, state) for kernel in options.kernels for state in options.states]
    return ours + [PEERS[name] for name in options.peers]


def work(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Measures all rows; each is printed and written as it comes."""
    if options.shapes:
        bandwidth = Bandwidth(options.device)
        print(output.header(), flush=True)
    for name in options.shapes:
        shapes, rates = SHAPES[name](), bandwidth.measured()
        for contender in contenders(options):
            row: dict[str, Any] = {
                "shapes": name,
                "parameters": count(shapes),
                "tensors": len(shapes),
                "optimizer": contender.optimizer,
                "kernel": contender.kernel,
                "state": contender.state,
                **{f"{kind}_gb_per_second": rate for kind, rate in rates.items()},
                **attempt(contender, shapes, options, measure),
            }
            if row["why_not"] is None:
                rate = row["bytes_moved"] / row["ms"]["median"] / 1e6
                row |= {f"share_of_{kind}": rate / rates[kind] for kind in rates}
            results["rows"].append(row)
            print(output.line(row), flush=True)
            output.write(options.output, results)
    if options.end_to_end:
        found = results["end_to_end"] = end_to_end(
            options.rounds, options.max_steps, options.device
        )
        print_end_to_end(found)


def print_end_to_end(row: dict[str, Any]) -> None:
    """The training's table, of one row."""
    print("\n" + output.header(("training", "DWMGrad samples/s", "AdamW fused", "ratio of times")))
    keys = ("dwmgrad_samples_per_second", "adamw_fused_samples_per_second", "ratio")
    cells = [row["why_not"], "-", "-"]
    if row["why_not"] is None:
        cells = [output.with_quartiles(row[key]) for key in keys]
    print(output.table_line([f"{row['config']}, {row['max_steps']} steps", *cells]), flush=True)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    add_common(parser)
    add(
        "--end_to_end",
        action="store_true",
        help="also train configs/demo.yaml with DWMGrad and with fused AdamW, in turn",
    )
    add("--rounds", type=int, default=3, help="trainings of each for --end_to_end (default: 3)")
    add("--max_steps", type=int, default=200, help="the steps of a training (default: 200)")
    options = parser.parse_args(argv)  # fmt: skip
    check_common(parser, options)
    for name in ("rounds", "max_steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measures and writes; returns the exit code."""
    options = parse(argv)
    settings = {"pairs": options.pairs, "row_seconds": options.row_seconds}
    results = output.record(options.device, **settings)
    return run(work, output.plot, options, results)


if __name__ == "__main__":
    sys.exit(main())
