"""One of the paper's experiments, from a file of configs/experiments/.

    python scripts/run_experiment.py configs/experiments/rosenbrock.yaml
    python scripts/run_experiment.py configs/experiments/cora.yaml --data_dir my/cora
    python scripts/run_experiment.py configs/experiments/glue.yaml --workload glue-rte glue-mrpc \\
        --data_dir my/glue --model_name_or_path my/roberta --seeds 0 1 2

Prints a Markdown table, and writes results.json, table.md and a picture beside the runs' own files;
with --output FILE also one small JSON of all, for docs/results/ ({workload} in its name stands for
the workload's; with several workloads it has to be there).
Runs that are there already are not made again: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glue.errors import UsageError, needs, run_cli

with needs("experiments"):
    from atomic import check_output, write_json, write_text
    from experiments.cli import command, end, parse
    from experiments.compact import as_text, experiment_record
    from experiments.config import Experiment, read_experiment
    from experiments.plots import learning_curves, valley
    from experiments.runner import Failure, made, sweep
    from experiments.table import markdown

PLACE = "{workload}"
OPTIONS: dict[str, dict[str, Any]] = {
    "seeds": {"type": int, "nargs": "+", "help": "one run with each"},
    "workload": {"nargs": "+", "help": "other workloads with the same contenders"},
    "output": {"help": "also one small JSON of all runs, with their curves"},
}
Results = dict[str, list[dict[str, Any]]]


def main(argv: Sequence[str] | None = None) -> Results:
    """Run what `argv` (default: the command line) asks for; return label: results."""
    file, values = parse(argv, __doc__, "configs/experiments/cora.yaml", **OPTIONS)
    processes, output = values.pop("processes"), values.pop("output") or ""
    names = values.pop("workload") or [None]
    if output and len(names) > 1 and PLACE not in output:
        raise UsageError(f"--output {output}: write {PLACE} in it, there are {len(names)} of them")
    experiments = [read_experiment(file, **values, workload=name) for name in names]
    for experiment in experiments:
        experiment.workload.check()
        check_output(experiment.output_dir / "results.json", "--output_dir")
        if output:
            check_output(Path(output.replace(PLACE, experiment.workload.name)))
    results: Results = {}
    failures: list[Failure] = []
    for experiment, name in zip(experiments, names, strict=True):
        report = experiment.output_dir / (experiment.workload.name if len(names) > 1 else "")
        found, failed = run(experiment, processes, report)
        if output:
            line = command(
                "run_experiment.py", file, {**values, "workload": name, "output_dir": None}
            )
            path = Path(output.replace(PLACE, experiment.workload.name))
            write_text(path, as_text(experiment_record(experiment, found, failed, line)) + "\n")
            print(f"and as {path}")
        for label, each in found.items():
            results.setdefault(label, []).extend(each)
        failures += failed
    end(failures)
    return results


def run(experiment: Experiment, processes: int, folder: Path) -> tuple[Results, list[Failure]]:
    """Make what is not there yet, and report in `folder`; return label: results, and failures."""
    runs = experiment.runs()
    failures = sweep(sum(runs.values(), []), experiment.output_dir, processes)
    results = {label: made(some, experiment.output_dir) for label, some in runs.items()}
    table = markdown(results)
    print(f"\n{experiment.workload.name}, {experiment.workload.steps} steps\n\n{table}\n")
    write_text(folder / "table.md", table + "\n")
    record = {
        "workload": experiment.workload.description(),
        "results": results,
        "failures": [{"run": str(each.run), "error": each.error} for each in failures],
    }
    write_json(folder / "results.json", record)
    print(f"saved in {folder}: results.json, table.md{picture(results, folder)}")
    return results, failures


def picture(results: Results, folder: Path) -> str:
    """Draw what can be drawn and say its name."""
    found = [result for each in results.values() for result in each]
    try:
        drawn = [learning_curves(results, folder / "curves.png")]
        if found and all("path" in result for result in found):
            drawn.append(valley(results, folder / "valley.png"))
    except ImportError as error:
        return f"; no picture: {error}"
    return "".join(f", {path.name}" for path in drawn if path)


if __name__ == "__main__":
    run_cli(main, "experiments")
