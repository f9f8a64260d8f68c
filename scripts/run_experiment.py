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

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glue.errors import UsageError, needs, run_cli

with needs("experiments"):
    from experiments.cli import check_output, command, parse
    from experiments.compact import as_text, experiment_record
    from experiments.config import Experiment, read_experiment
    from experiments.files import write_json, write_text
    from experiments.plots import learning_curves, valley
    from experiments.runner import Failure, read_result, sweep
    from experiments.table import markdown

ROOT = Path(__file__).parents[1]
PLACE = "{workload}"


@dataclass
class ExperimentArguments:
    """What the command line says in place of the file."""

    seeds: list[int] | None = field(default=None, metadata={"help": "One run with each."})
    output_dir: str | None = field(default=None, metadata={"help": "Where results go."})
    data_dir: str | None = field(default=None, metadata={"help": "The folder with the data."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The pretrained encoder, for glue-*."}
    )
    workload: list[str] | None = field(
        default=None, metadata={"help": "Other workloads with the same contenders."}
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
    names = values.pop("workload")
    if output and len(names or ()) > 1 and PLACE not in output:
        raise UsageError(f"--output {output}: write {PLACE} in it, there are {len(names)} of them")
    experiments = [read_experiment(file, **values, workload=name) for name in names or [None]]
    outputs = [Path((output or "").replace(PLACE, each.workload.name)) for each in experiments]
    for experiment, path in zip(experiments, outputs, strict=True):
        experiment.workload.check()
        if output:
            check_output(path)
    results: dict[str, list[dict[str, Any]]] = {}
    failures: list[Failure] = []
    for experiment, path in zip(experiments, outputs, strict=True):
        apart = experiment.workload.name if len(experiments) > 1 else ""
        found, failed = run(experiment, processes, apart)
        if output:
            given = {"seeds": values["seeds"], "data_dir": values["data_dir"],
                     "model_name_or_path": values["model_name_or_path"],
                     "workload": names and experiment.workload.name,
                     "contenders": values["contenders"]}  # fmt: skip
            line = command("run_experiment.py", file, ROOT, given)
            write_text(path, as_text(experiment_record(experiment, found, failed, line)) + "\n")
            print(f"and as {path}")
        for label, each in found.items():
            results.setdefault(label, []).extend(each)
        failures += failed
    if failures:
        raise UsageError(
            f"{len(failures)} runs failed, the first with: {failures[0].error}; the others stand, "
            f"and what the processes printed is in {experiments[0].output_dir / 'workers.log'}"
        )
    return results


def run(
    experiment: Experiment, processes: int, apart: str = ""
) -> tuple[dict[str, list[dict[str, Any]]], list[Failure]]:
    """Make what is not there yet, and report; return label: results, and what failed.

    `apart` is a folder of its own, within the experiment's, for the report.
    """
    folder, runs = experiment.output_dir, experiment.runs()
    _, failures = sweep([each for some in runs.values() for each in some], folder, processes)
    results = {
        label: [read_result(each.path(folder)) for each in some if each.path(folder).exists()]
        for label, some in runs.items()
    }
    report(experiment, results, failures, folder / apart)
    return results, failures


def report(
    experiment: Experiment,
    results: dict[str, list[dict[str, Any]]],
    failures: Sequence[Failure],
    folder: Path,
) -> None:
    """Table, JSON and picture of what there is."""
    table = markdown(results)
    print(f"\n{experiment.workload.name}, {experiment.workload.steps} steps\n\n{table}\n")
    folder.mkdir(parents=True, exist_ok=True)
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
    run_cli(main, "experiments")
