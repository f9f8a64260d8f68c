"""The demo's work with several optimizers and seeds, side by side.

  python scripts/compare_demo.py --seeds 3 4 5 --output docs/results/demo.json

Everything but the optimizer is configs/demo.yaml. Prints a Markdown table: accuracy on the 872
development sentences for each seed, the mean, and the median training time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
import transformers
from run_glue import main as run_glue

CONTENDERS = {
    "DWMGrad, max_window=100": ["--optim", "dwmgrad", "--optim_args", "max_window=100"],
    "AdamW (fused)": ["--optim", "adamw_torch_fused", "--optim_args", ""],
}


def windows(folder: Path) -> list[int]:
    """The window at each log of a run; none for other optimizers."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["window"] for entry in history if "window" in entry]


def main() -> None:
    """Runs each contender with each seed and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--learning_rate", default="1e-3")
    parser.add_argument("--output", type=Path, help="also write every result as JSON")
    options = parser.parse_args()
    config = str(Path(__file__).resolve().parent.parent / "configs" / "demo.yaml")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for seed in options.seeds:
        for name, arguments in CONTENDERS.items():  # in turn, so that both see the same machine
            common = ["--seed", str(seed), "--learning_rate", options.learning_rate]
            folder = ["--output_dir", f"runs/compare/{arguments[1]}-{seed}", "--plot", "false"]
            results = run_glue([config, *arguments, *common, *folder])
            rows[name].append({"seed": seed, **results, "window": windows(Path(folder[1]))})
    seeds = " | ".join(f"seed {seed}" for seed in options.seeds)
    print(f"\n| optimizer | {seeds} | mean accuracy | training time |")
    print("|---|" + "---|" * (len(options.seeds) + 2))
    for name, results_of in rows.items():
        accuracies = [100 * row["eval_accuracy"] for row in results_of]
        cells = " | ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        seconds = statistics.median(row["train_runtime"] for row in results_of)
        print(f"| {name} | {cells} | {statistics.mean(accuracies):.1f} % | {seconds:.0f} s |")
    if options.output:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        options.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine, "learning_rate": options.learning_rate, "rows": rows}
        options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
