"""A folder of results such as the scripts write, made up from a fixed seed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from experiments.contenders import get_contender

MACHINE = {"processor": "Fake 1", "system": "Linux", "cores": 2, "threads": 1, "accelerator": None}
VERSIONS = {"python": "3.11", "dwmgrad": "0.1.0", "torch": "2.13"}
SKILL = {
    "adamw": 0.0,
    "dwmgrad-finetune": 0.03,
    "dwmgrad-auto": -0.05,
    "dwmgrad-decrease": -0.02,
    "sgd": -0.1,
}
"""By how much a contender's score is above AdamW's."""


def a_run(
    rng: np.random.Generator, skill: float, lr: float, seed: int, steps: int, higher: bool
) -> dict[str, Any]:
    """A loss that falls to a level, and a score that goes with it, best at lr 1e-3."""
    quality = 0.8 + skill - 0.05 * math.log10(lr / 1e-3) ** 2 + rng.normal(0, 0.005)
    recorded = np.arange(2, steps + 1, 2)
    curve = 2 * np.exp(-recorded / (40 - 400 * skill)) + 1.2 - quality
    losses = curve + rng.normal(0, 0.02, len(recorded))
    scored = np.linspace(steps / 4, steps, 4).astype(int)
    shares = quality * (1 - np.exp(-scored / 40))
    scores = shares if higher else 100 * np.exp(2 * (0.8 - shares))
    return {
        "lr": lr,
        "seed": seed,
        "score": float(scores[-1]),
        "diverged": False,
        "train_loss": float(losses[-(steps // 40) :].mean()),
        "steps": steps,
        "seconds": float(rng.uniform(5, 9)),
        "losses": [[int(s), float(f"{x:.5g}")] for s, x in zip(recorded, losses, strict=True)],
        "scores": [[int(s), float(x)] for s, x in zip(scored, scores, strict=True)],
    }


def diverged(run: dict[str, Any]) -> dict[str, Any]:
    """The same run, ended early."""
    return {
        **run,
        "score": None,
        "diverged": True,
        "train_loss": None,
        "steps": 40,
        "losses": [point for point in run["losses"] if point[0] <= 40],
        "scores": [],
    }


def a_comparison(
    name: str, contenders: list[str], higher: bool = True, new_seeds: int = 5, **plan: Any
) -> dict[str, Any]:
    """A complete comparison; `plan` replaces values of its plan."""
    rng, steps = np.random.default_rng(sum(map(ord, name))), 200
    rates = [1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2]
    entries = {}
    for contender in contenders:
        skill, own = SKILL[contender], get_contender(contender)
        best = 1.0 if own.rateless else 1e-3
        runs = [
            a_run(rng, skill, lr, seed, steps, higher)
            for lr in ([1e-3] if own.rateless else rates)
            for seed in (0, 1, 2)
        ]
        if own.rateless:
            runs = [{**run, "lr": best} for run in runs]
        final = [a_run(rng, skill, 1e-3, seed, steps, higher) for seed in range(10, 10 + new_seeds)]
        entries[contender] = {
            "title": own.title,
            "rule": own.rule,
            "defaults": dict(own.defaults),
            "rateless": own.rateless,
            "best_lr": best,
            "runs": [{**run, "by": run["score"]} for run in runs],
            "final": [{**run, "lr": best} for run in final],
        }
    return {
        "kind": "comparison",
        "title": f"A {name}",
        "workload": name,
        "metric": "accuracy" if higher else "perplexity",
        "higher_is_better": higher,
        "steps": steps,
        "plan": {
            "workload": name,
            "contenders": contenders,
            "rates": rates,
            "seeds": [0, 1, 2],
            "by": "score",
            "final": {"seeds": list(range(10, 10 + new_seeds)), "options": {}} if new_seeds else {},
            "chosen_on": [],
            **plan,
        },
        "description": {"defaults": {"schedule": "linear", "warmup": 0.05}},
        "command": f"python scripts/compare_optimizers.py configs/comparisons/{name}.yaml",
        "machine": [MACHINE],
        "versions": [VERSIONS],
        "contenders": entries,
        "complete": True,
        "failures": [],
    }


def an_experiment(
    kind: str, workload: str, labels: dict[str, dict[str, Any]], seeds: int
) -> dict[str, Any]:
    """An experiment or an ablation: label: settings."""
    rng = np.random.default_rng(len(workload))
    results = {}
    for label, settings in labels.items():
        runs = [a_run(rng, 0, settings["lr"], seed, 200, True) for seed in range(seeds)]
        for run in runs:
            if settings.get("max_window"):
                run["windows"] = [[step, 3 + step % 5] for step in range(1, 201)]
                run |= {"increases": 0.8, "signal_noise": 0.4}
            if workload == "rosenbrock":
                run["path"] = [[1.0, 2.0], [1.1, 1.5], [1.005, 1.011]]
        contender = "dwmgrad-decrease" if settings.get("max_window") else "adam"
        results[label] = {"contender": contender, "settings": settings, "runs": runs}
    return {
        "kind": kind,
        "title": f"Our {workload}",
        "workload": workload,
        "metric": "f" if workload == "rosenbrock" else "accuracy",
        "higher_is_better": workload != "rosenbrock",
        "steps": 200,
        "description": {},
        "command": f"python scripts/run_experiment.py configs/experiments/{workload}.yaml",
        "machine": [MACHINE],
        "versions": [VERSIONS],
        "results": results,
        "failures": [],
    }


def write(folder: Path) -> Path:
    """Every kind of file, and every kind of mishap."""
    folder.mkdir(parents=True, exist_ok=True)
    everyone = ["adamw", "dwmgrad-finetune", "dwmgrad-auto", "dwmgrad-decrease", "sgd"]
    cora = a_comparison("cora", everyone, chosen_on=["dwmgrad-finetune"])
    sgd = cora["contenders"]["sgd"]
    sgd["runs"][-1], sgd["final"][2] = diverged(sgd["runs"][-1]), diverged(sgd["final"][2])
    digits = a_comparison("digits", everyone, new_seeds=0)
    del digits["contenders"]["sgd"]
    digits["complete"] = False
    language = a_comparison("language", everyone[:-1], higher=False)
    settings = {"lr": 1e-3, "weight_decay": 0.01}
    ours = {"DWMGrad, max_window=15": settings | {"max_window": 15}, "Adam": settings}
    windows = {f"window {n}": settings | {"max_window": n} for n in (15, 100, 400)}
    files = {
        "comparison-cora": cora,
        "comparison-digits": digits,
        "comparison-language": language,
        "experiment-rosenbrock": an_experiment("experiment", "rosenbrock", ours, 1),
        "experiment-cora": an_experiment("experiment", "cora", ours, 10),
        "ablation-window": an_experiment("ablation", "tiny-sst2", windows, 3),
    }
    for name, data in files.items():
        (folder / f"{name}.json").write_text(json.dumps(data, allow_nan=False))
    return folder
