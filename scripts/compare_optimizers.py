"""Optimizers side by side, each at its own best learning rate, from a file of configs/comparisons/.

    python scripts/compare_optimizers.py configs/comparisons/tiny_sst2.yaml
    python scripts/compare_optimizers.py configs/comparisons/cora.yaml --data_dir my/cora \\
        --output docs/results/comparison-cora.json

The search is the same for all: a grid over the learning rate, then Optuna's proposals. Each then
runs with several other seeds at its best rate, and, where the file asks for it, at one rate that is
the same for all. Prints Markdown tables and writes one JSON.
Runs that are there already are not made again: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glue.errors import UsageError, needs, run_cli

with needs("experiments"):
    from experiments.cli import check_output, command, parse
    from experiments.compact import as_text, check_same_plan, comparison_record, joined
    from experiments.comparison import Comparison, read_comparison
    from experiments.evidence.results import read_result
    from experiments.files import write_text
    from experiments.runner import Failure
    from experiments.table import comparison_tables
    from experiments.tuning import make_runs

ROOT = Path(__file__).parents[1]


@dataclass
class ComparisonArguments:
    """What the command line says beside the file."""

    data_dir: str | None = field(default=None, metadata={"help": "The folder with the data."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The pretrained encoder, for glue-*."}
    )
    contenders: list[str] | None = field(
        default=None,
        metadata={"help": "Only these of the file; what --output has of the others stays in it."},
    )
    output: str | None = field(
        default=None,
        metadata={"help": "The JSON; by default OUTPUT_DIR/WORKLOAD/comparison.json."},
    )
    output_dir: str | None = field(default=None, metadata={"help": "Where the runs go."})
    processes: int = field(default=2, metadata={"help": "Runs at a time, one thread each."})


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what `argv` (default: the command line) asks for; return what the JSON has."""
    example = "configs/comparisons/tiny_sst2.yaml"
    words = sys.argv[1:] if argv is None else argv
    file, arguments = parse(ComparisonArguments, words, __doc__, example)
    values = asdict(arguments)
    processes, output = values.pop("processes"), values.pop("output")
    comparison = read_comparison(file, **values)
    values.pop("output_dir")
    path = Path(output or comparison.output_dir / comparison.workload.name / "comparison.json")
    comparison.workload.check()
    check_output(path)
    kept = None
    if arguments.contenders and (kept := older(path, comparison)):
        values["contenders"] = None
        names = read_comparison(file, **values).contenders
    line = command("compare_optimizers.py", file, ROOT, values)

    def save(failures: Sequence[Failure]) -> dict[str, Any]:
        made = comparison_record(comparison, failures, line)
        return report(joined(made, kept, names, line) if kept else made, path)

    try:
        failures = make_runs(comparison, processes)
    except KeyboardInterrupt:
        save([])
        raise
    record = save(failures)
    if failures:
        raise UsageError(
            f"{len(failures)} runs failed, the first with: {failures[0].error}; the others stand, "
            "the same command tries again, and what the processes printed is in "
            f"{comparison.output_dir / 'workers.log'}"
        )
    return record


def older(path: Path, comparison: Comparison) -> dict[str, Any] | None:
    """What `path` has of an earlier call; None: there is no such file.

    Raises:
        UsageError: it is no comparison, or one by another plan.
    """
    if not path.exists():
        return None
    try:
        kept = read_result(path, "comparison")
        check_same_plan(kept, comparison)
    except UsageError as error:
        raise UsageError(f"--output {path}: {error}") from error
    return kept


def report(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Tables and JSON of what there is."""
    text = as_text(record)
    record = json.loads(text)
    write_text(path, text + "\n")
    print(f"\n{comparison_tables(record)}\n\nsaved as {path}")
    return record


if __name__ == "__main__":
    run_cli(main, "experiments")
