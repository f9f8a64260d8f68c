"""One of the paper's experiments, from a file of configs/experiments/.

    python scripts/run_experiment.py configs/experiments/rosenbrock.yaml
    python scripts/run_experiment.py configs/experiments/cora.yaml --data_dir my/cora
    python scripts/run_experiment.py configs/experiments/glue.yaml --workload glue-rte \\
        --data_dir my/glue --model_name_or_path my/roberta --seeds 0 1 2

Prints a Markdown table, and writes results.json, table.md and a picture beside the runs' own files;
with --output FILE also one small JSON of all, for docs/results/.
Runs that are there already are not made again: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dwmgrad.experiments.cli import check_output, command, parse
from dwmgrad.experiments.compact import as_text, experiment_record
from dwmgrad.experiments.config import Experiment, read_experiment
from dwmgrad.experiments.plots import learning_curves, valley
from dwmgrad.experiments.runner import Failure, read_result, sweep, write_json, write_text
from dwmgrad.experiments.table import markdown
from dwmgrad.glue.errors import UsageError, run_cli

ROOT = Path(__file__).parents[1]


@dataclass
class ExperimentArguments:
    """What the command line says in place of the file."""

    seeds: list[int] | None = field(default=None, metadata={"help": "One run with each."})
    output_dir: str | None = field(default=None, metadata={"help": "Where results go."})
    data_dir: str | None = field(default=None, metadata={"help": "The folder with the data."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The pretrained encoder, for glue-*."}
    )
    workload: str | None = field(
        default=None, metadata={"help": "Another workload with the same contenders."}
    )
    contenders: list[str] | None = field(
        default=None, metadata={"help": "Only these labels of the file."}
    )
    output: str | None = field(
        default=None, metadata={"help": "Also one small JSON of all runs, with their curves."}
    )
    processes: int = field(default=2, metadata={"help": "Runs at a time, one thread each."})


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Run what `argv` (default: the command line) asks for; return label: results."""
    words = sys.argv[1:] if argv is None else argv
    file, arguments = parse(ExperimentArguments, words, __doc__, "configs/experiments/cora.yaml")
    values = asdict(arguments)
    processes, output = values.pop("processes"), values.pop("output")
    experiment = read_experiment(file, **values)
    experiment.workload.check()
    if output:
        check_output(Path(output))
    folder = experiment.output_dir
    runs = experiment.runs()
    _, failures = sweep([run for each in runs.values() for run in each], folder, processes)
    results = {
        label: [read_result(run.path(folder)) for run in each if run.path(folder).exists()]
        for label, each in runs.items()
    }
    report(experiment, results, failures, folder)
    if output:
        values.pop("output_dir")
        line = command("run_experiment.py", file, ROOT, values)
        record = experiment_record(experiment, results, failures, line)
        write_text(Path(output), as_text(record) + "\n")
        print(f"and as {output}")
    if failures:
        raise UsageError(
            f"{len(failures)} runs failed, the first with: {failures[0].error}; the others stand, "
            f"and what the processes printed is in {folder / 'workers.log'}"
        )
    return results


def report(
    experiment: Experiment,
    results: dict[str, list[dict[str, Any]]],
    failures: Sequence[Failure],
    folder: Path,
) -> None:
    """Table, JSON and picture of what there is."""
    table = markdown(results)
    print(f"\n{experiment.workload.name}, {experiment.workload.steps} steps\n\n{table}\n")
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    write_json(
        folder / "results.json",
        {
            "workload": experiment.workload.description(),
            "results": results,
            "failures": [{"run": str(f.run), "error": f.error, "details": f.details}
                         for f in failures],
        },
    )  # fmt: skip
    print(f"saved in {folder}: results.json, table.md{picture(results, folder)}")


def picture(results: dict[str, list[dict[str, Any]]], folder: Path) -> str:
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
    run_cli(main)
