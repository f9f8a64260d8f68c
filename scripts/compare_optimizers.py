"""Optimizers side by side, each at its own best learning rate, from a file of configs/comparisons/.

    python scripts/compare_optimizers.py configs/comparisons/tiny_sst2.yaml
    python scripts/compare_optimizers.py configs/comparisons/cora.yaml --data_dir my/cora \\
        --output docs/results/comparison-cora.json

The search is the same for all: a grid over the learning rate, then Optuna's proposals. Each then
runs with several other seeds at its best rate, and, where the file asks for it, at one rate that is
the same for all. Prints Markdown tables and writes one JSON; what that has of contenders that
--contenders leaves out stays in it. A file with `rates` tunes nothing: every optimizer runs at
every one of these learning rates.
Runs that are there already are not made again: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glue.errors import UsageError, needs, run_cli

with needs("experiments"):
    from experiments.cli import check_output, command, end, parse
    from experiments.compact import as_text, check_same_plan, comparison_record, joined
    from experiments.comparison import Comparison, read_comparison
    from experiments.evidence.results import read_result
    from experiments.files import write_text
    from experiments.rates import has_rates, rates_record, rates_table, read_rate_plan
    from experiments.runner import Failure, sweep
    from experiments.table import comparison_tables
    from experiments.tuning import make_runs

OUTPUT = {"help": "the JSON; by default OUTPUT_DIR/WORKLOAD/comparison.json"}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what `argv` (default: the command line) asks for; return what the JSON has."""
    file, values = parse(argv, __doc__, "configs/comparisons/tiny_sst2.yaml", output=OUTPUT)
    processes, output = values.pop("processes"), values.pop("output")
    if has_rates(file):
        return over_rates(file, values, processes, output)
    comparison = read_comparison(file, **values)
    values.pop("output_dir")
    path = Path(output or comparison.output_dir / comparison.workload.name / "comparison.json")
    comparison.workload.check()
    check_output(path)
    kept = older(path, comparison) if values["contenders"] else None
    if kept:
        values["contenders"] = None
    names = read_comparison(file, **values).contenders
    line = command("compare_optimizers.py", file, values)

    def save(failures: Sequence[Failure]) -> dict[str, Any]:
        made = comparison_record(comparison, failures, line)
        text = as_text(joined(made, kept, names, line) if kept else made)
        write_text(path, text + "\n")
        print(f"\n{comparison_tables(json.loads(text))}\n\nsaved as {path}")
        return json.loads(text)

    try:
        failures = make_runs(comparison, processes)
    except KeyboardInterrupt:
        save([])
        raise
    record = save(failures)
    end(failures, comparison.output_dir)
    return record


def over_rates(
    file: str, values: dict[str, Any], processes: int, output: str | None
) -> dict[str, Any]:
    """The second kind of plan: no tuning, and every optimizer over the same learning rates."""
    plan = read_rate_plan(file, **values)
    values.pop("output_dir")
    path = Path(output or plan.output_dir / plan.workload.name / "rates.json")
    plan.workload.check()
    check_output(path)
    failures: list[Failure] = []
    try:
        runs = sorted(sum(plan.runs().values(), []), key=lambda run: run.seed)  # whole seeds first
        failures = sweep(runs, plan.output_dir, processes)[1]
    finally:  # after Ctrl-C, too
        record = rates_record(plan, failures, command("compare_optimizers.py", file, values))
        write_text(path, as_text(record) + "\n")
        print(f"\n{rates_table(record)}\n\nsaved as {path}")
    end(failures, plan.output_dir)
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


if __name__ == "__main__":
    run_cli(main, "experiments")
