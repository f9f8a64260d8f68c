"""Optimizers side by side over learning rates, from a file of configs/comparisons/.

    python scripts/compare_optimizers.py configs/comparisons/tiny_sst2.yaml
    python scripts/compare_optimizers.py configs/comparisons/cora.yaml --data_dir my/cora \\
        --output docs/results/comparison-cora.json

Every optimizer runs at every learning rate of the file with several seeds, then with new seeds at
the rate that was its best. Prints Markdown tables and writes one JSON. --contenders runs some of
the optimizers alone, and needs their packages alone; what the JSON has of the others stays in it.
Runs that are there already are not made again: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glue.errors import needs, run_cli

with needs("experiments"):
    from atomic import check_output, write_text
    from experiments.cli import command, end, kept_in, parse
    from experiments.compact import as_text, check_same_plan, comparison_record
    from experiments.comparison import read_comparison
    from experiments.evidence.compared import Compared
    from experiments.evidence.tables import final_table, rates_table
    from experiments.runner import Failure, sweep

OUTPUT = {"help": "the JSON; by default OUTPUT_DIR/WORKLOAD/comparison.json"}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what `argv` (default: the command line) asks for; return what the JSON has."""
    file, values = parse(argv, __doc__, "configs/comparisons/tiny_sst2.yaml", output=OUTPUT)
    processes, output = values.pop("processes"), values.pop("output")
    comparison = read_comparison(file, **values)
    del values["output_dir"], values["contenders"]
    name, line = comparison.workload.name, command("compare_optimizers.py", file, values)
    path = Path(output or comparison.output_dir / name / "comparison.json")
    comparison.workload.check()
    check_output(path)
    kept = kept_in(path, "comparison", check_same_plan, comparison)

    def save(failures: Sequence[Failure]) -> dict[str, Any]:
        record = json.loads(as_text(comparison_record(comparison, failures, line, kept)))
        write_text(path, as_text(record) + "\n")
        compared = Compared("comparison", name, record)
        tables = rates_table(compared), final_table(compared)
        print("", *filter(None, tables), f"saved as {path}", sep="\n\n")
        return record

    failures: list[Failure] = []
    try:
        for stage in (comparison.rate_runs, comparison.final_runs):
            runs = sorted(sum(stage().values(), []), key=lambda run: run.seed)  # whole seeds first
            sweep(runs, comparison.output_dir, processes, failures)
    except KeyboardInterrupt:
        save(failures)
        raise
    record = save(failures)
    end(failures)
    return record


if __name__ == "__main__":
    run_cli(main, "experiments")
