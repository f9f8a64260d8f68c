"""The same GLUE work with several optimizers and seeds, side by side.

  python scripts/compare_runs.py configs/demo.yaml --output docs/results/demo.json
  python scripts/compare_runs.py configs/demo.yaml --contenders state --seeds 0 1 2
  python scripts/compare_runs.py configs/glue/cola.yaml --model_name_or_path my/roberta \
      --data_dir my/glue --metric loss

Arguments that are not named below go to run_glue.py. Prints a Markdown table: the metric on the
development set for each seed, the mean, and the median training time.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from glue.errors import UsageError, UsageParser, needs, run_cli

with needs("glue"):
    from atomic import check_output, write_json
    from glue.metrics import names_of
    from glue.own import own_task
    from glue.parsing import parse
    from glue.tasks import get_task
    from provenance import machine, versions
    from run_glue import main as run_glue

    import dwmgrad

_PRESET = ["--optim_args", "preset=finetune"]
CONTENDERS: dict[str, dict[str, list[str]]] = {
    "optimizer": {
        "DWMGrad, preset finetune": ["--optim", "dwmgrad_finetune", "--optim_args", ""],
        "AdamW (fused)": ["--optim", "adamw_torch_fused", "--optim_args", ""],
    },
    "state": {  # the recommended preset, whose state has 32, 16 and 8 bits
        "dwmgrad_finetune": ["--optim", "dwmgrad_finetune", "--optim_args", ""],
        "dwmgrad_bf16, finetune": ["--optim", "dwmgrad_bf16", *_PRESET],
        "dwmgrad_8bit, finetune": ["--optim", "dwmgrad_8bit", *_PRESET],
    },
}
OURS = ("seed", "output_dir", "plot", "optim", "optim_args")
"""The arguments of run_glue.py that a contender or a seed sets."""


def checked_metric(asked: str | None, words: list[str]) -> str:
    """The metric to compare, by default the task's main one.

    Raises:
        UsageError: runs with these words of run_glue.py would not have it.
    """
    dwmgrad.register()
    args = parse(words)
    if not (args.training.do_train and args.training.do_eval):
        raise UsageError("the runs need --do_train and --do_eval")
    task = own_task(args.training, args.data) or get_task(args.data.task_name)
    names = ["loss", *names_of(task)]
    names += [f"{name}_mm" for name in names if len(task.validation) > 1]
    if asked is not None and asked not in names and not task.own:  # its labels may be scores
        raise UsageError(f"--metric {asked}: {task.name} has {', '.join(names)}")
    return asked or task.main_metric


def main() -> None:
    """Runs each contender with each seed and prints the table."""
    parser = UsageParser(description=__doc__)
    parser.add_argument("config", help="a file of run_glue.py's arguments")
    parser.add_argument("--contenders", choices=CONTENDERS, default="optimizer")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--metric", help="by default the task's main one")
    parser.add_argument("--work", type=Path, default=Path("runs/compare"), help="runs go here")
    parser.add_argument("--output", type=Path, help="also write every result as JSON")
    options, passed_on = parser.parse_known_args()
    for word in passed_on:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in OURS:
            raise UsageError(f"{word}: this script sets --{name} itself; leave it out")
    if options.output:
        check_output(options.output)
    given = [options.config, *passed_on]
    metric = checked_metric(options.metric, [*given, "--output_dir", str(options.work)])
    contenders = CONTENDERS[options.contenders]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for seed in options.seeds:
        for name, arguments in contenders.items():  # in turn, so that all see the same machine
            folder = options.work / f"{arguments[1]}-{seed}"
            own = ["--seed", str(seed), "--output_dir", str(folder), "--plot", "false"]
            run_glue([*given, *arguments, *own])
            # a run that had ended has its figures there alone
            results = json.loads((folder / "all_results.json").read_text())
            needed = (f"eval_{metric}", "train_runtime")
            if lacking := [each for each in needed if each not in results]:
                raise UsageError(
                    f"--metric {metric}: {folder} has no {lacking[0]}; it has "
                    f"{', '.join(sorted(results))}"
                )
            history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
            windows = [entry["window"] for entry in history if "window" in entry]
            rows[name].append({"seed": seed, **results, "window": windows})
    seeds = " | ".join(f"seed {seed}" for seed in options.seeds)
    print(f"\n| optimizer | {seeds} | mean {metric} | training time |")
    print("|---|" + "---|" * (len(options.seeds) + 2))
    times, form = (1, "{:.4f}") if metric.startswith("loss") else (100, "{:.1f}")
    for name, results_of in rows.items():
        scores = [times * row[f"eval_{metric}"] for row in results_of]
        cells = " | ".join(map(form.format, scores))
        mean = form.format(statistics.mean(scores)) + " %" * (times == 100)
        seconds = statistics.median(row["train_runtime"] for row in results_of)
        print(f"| {name} | {cells} | {mean} | {seconds:.0f} s |")
    if options.output:
        names = [Path(word).name if Path(word).exists() else word for word in passed_on]
        record = {
            "machine": {**machine(), **versions("torch", "transformers")},
            "config": options.config,
            "arguments": names,
            "rows": rows,
        }
        write_json(options.output, record, indent=2, allow_nan=True)


if __name__ == "__main__":
    run_cli(main)
