"""One of the paper's experiments, from a file of configs/experiments/.

    python scripts/run_experiment.py configs/experiments/rosenbrock.yaml
    python scripts/run_experiment.py configs/experiments/cora.yaml --data_dir my/cora
    python scripts/run_experiment.py configs/experiments/glue.yaml --workload glue-rte glue-mrpc \\
        --data_dir my/glue --model_name_or_path my/roberta --seeds 0 1 2

Prints a Markdown table, and writes results.json, table.md and a picture beside the runs' own files;
with --output FILE also results.json as FILE, for docs/results/ ({workload} in its name stands for
the workload's; with several workloads it has to be there). --contenders runs some of them alone:
what FILE has of the others stays in it.
Runs that are there already are not made again: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glue.errors import UsageError, needs, run_cli

with needs("experiments"):
    from atomic import check_output, write_text
    from experiments.cli import command, end, kept_in, parse
    from experiments.compact import as_text, experiment_record, with_others
    from experiments.config import Experiment, read_experiment
    from experiments.evidence.results import Result
    from experiments.plots import draw_experiment
    from experiments.runner import Failure, sweep

PLACE = "{workload}"
OPTIONS: dict[str, dict[str, Any]] = {
    "seeds": {"type": int, "nargs": "+", "help": "one run with each"},
    "workload": {"nargs": "+", "help": "other workloads with the same contenders"},
    "output": {"help": "another file for results.json"},
}


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run what `argv` (default: the command line) asks for; return each workload's record."""
    file, values = parse(argv, __doc__, "configs/experiments/cora.yaml", **OPTIONS)
    processes, output = values.pop("processes"), values.pop("output") or ""
    names = values.pop("workload") or [None]
    if output and len(names) > 1 and PLACE not in output:
        raise UsageError(f"--output {output}: write {PLACE} in it, there are {len(names)} of them")
    experiments = [read_experiment(file, **values, workload=name) for name in names]
    kept: dict[str, Any] = {}
    for experiment in experiments:
        experiment.workload.check()
        check_output(experiment.output_dir / "results.json", "--output_dir")
        if output:
            path = Path(output.replace(PLACE, experiment.workload.name))
            check_output(path)
            if values["contenders"]:
                kept[experiment.workload.name] = kept_in(
                    path, experiment.kind, check_same_workload, experiment
                )
    records: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for experiment, name in zip(experiments, names, strict=True):
        workload = experiment.workload.name
        given = {**values, "workload": name, "output_dir": None}
        if old := kept.get(workload):
            del given["contenders"], given["seeds"]  # the file has the others, too
        line = command("run_experiment.py", file, given)
        failed = sweep(sum(experiment.runs().values(), []), experiment.output_dir, processes)
        record = experiment_record(experiment, failed, line)
        text = as_text(with_others(record, old) if old else record)
        records.append(json.loads(text))
        report(records[-1], text, experiment.output_dir / (workload if len(names) > 1 else ""))
        if output:
            path = Path(output.replace(PLACE, workload))
            write_text(path, text + "\n")
            print(f"and as {path}")
        failures += failed
    end(failures)
    return records


def check_same_workload(kept: Mapping[str, Any], experiment: Experiment) -> None:
    """Raise a UsageError if an older record is of another workload."""
    if kept["description"] != json.loads(json.dumps(experiment.workload.description())):
        raise UsageError("it is of another workload; give another --output")


def report(record: dict[str, Any], text: str, folder: Path) -> None:
    """Print a record's table, and save the table, the record's text and its pictures."""
    result = Result("experiment", record["workload"], record)
    table = result.markdown()
    print(f"\n{record['workload']}, {record['steps']} steps\n\n{table}\n")
    write_text(folder / "table.md", table + "\n")
    write_text(folder / "results.json", text + "\n")
    try:
        drawn = draw_experiment(result, folder / "curves.png", folder / "valley.png")
        pictures = "".join(f", {path.name}" for path in drawn)
    except ImportError as error:
        pictures = f"; no picture: {error}"
    print(f"saved in {folder}: results.json, table.md{pictures}")


if __name__ == "__main__":
    run_cli(main, "experiments")
