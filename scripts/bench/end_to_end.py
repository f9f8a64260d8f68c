"""Samples per second of a whole training, DWMGrad against fused AdamW."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.output import ROOT
from bench.timing import spread

OPTIMIZERS = {
    "dwmgrad": ["--optim", "dwmgrad", "--optim_args", "max_window=100"],
    "adamw_fused": ["--optim", "adamw_torch_fused", "--optim_args", ""],
}
CONFIG = "configs/demo.yaml"
ALONE = "--do_eval false --eval_strategy no --plot false --disable_tqdm true --seed 0"


def end_to_end(rounds: int, max_steps: int, device: str) -> dict[str, Any]:
    """Trains the demo in turn with both optimizers, each time in a process of its own.

    Args:
        rounds: how often each of the two trains.
        max_steps: the steps of a training.
        device: "cpu", or else the GPU that the Trainer takes by itself.

    Returns:
        The row: samples per second, and the ratio of the times of each round.
    """
    row: dict[str, Any] = {"config": CONFIG, "max_steps": max_steps, "rounds": rounds, "seed": 0}
    common = [*ALONE.split(), "--max_steps", str(max_steps), "--use_cpu", str(device == "cpu")]
    speeds: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for _ in range(rounds):
        for name, words in OPTIMIZERS.items():
            speed = _train([*words, *common])
            if isinstance(speed, str):
                return {**row, "why_not": f"{name}: {speed}"}
            speeds[name].append(speed)
    ratios = [theirs / ours for ours, theirs in zip(*speeds.values(), strict=True)]
    spreads = {f"{name}_samples_per_second": spread(found) for name, found in speeds.items()}
    return {**row, "why_not": None, **spreads, "ratio": spread(ratios)}


def _train(words: list[str]) -> float | str:
    """The samples per second of one training, or why it failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "scripts/run_glue.py", CONFIG, *words, "--output_dir", folder]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode != 0:
            return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        results = json.loads(Path(folder, "all_results.json").read_text())
        return results["train_samples_per_second"]
