"""A comparison's YAML file: the optimizers, how each learning rate is searched, the seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from glue.errors import UsageError

from experiments import config
from experiments.config import REQUIRED, Keys, Plan, checked, keep, load, workload_of
from experiments.contenders import CONTENDERS, choose
from experiments.runner import Run


class Comparison(Plan):
    """What a file asks for; its values: see `read_comparison`."""

    @property
    def tuning(self) -> dict[str, Any]:
        """How a learning rate is searched."""
        return self.values["tuning"]

    @property
    def higher_is_better(self) -> bool:
        """Of what `tuning.by` names; of a loss, the lower one is."""
        return self.workload.higher_is_better and not self.tuning["by"].endswith("loss")

    def range(self, contender: str) -> tuple[float, float]:
        """The lowest and the highest learning rate of the contender's search."""
        search = self.values["search"]
        return (search["low"], search["high"]) if search else self.workload.search_range(contender)

    def run(self, contender: str, lr: float | None, seed: int | None = None) -> Run:
        """A run of the contender; what else it sets are the workload's defaults.

        Without a seed it has that of the search.
        """
        seed = self.tuning["seed"] if seed is None else seed
        return Run(self.workload, contender, {"lr": lr}, seed)

    def grid_runs(self, contender: str) -> list[Run]:
        """The first trials of the contender, from the lowest rate to the highest."""
        rates = np.geomspace(*self.range(contender), self.tuning["grid"])
        return [self.run(contender, float(f"{lr:.2g}")) for lr in rates]

    def reach_runs(self, contender: str) -> list[Run]:
        """The runs at the rates of `reach`."""
        return [self.run(contender, lr) for lr in self.values["reach"].get(contender, ())]

    def seed_runs(self, contender: str, lr: float | None) -> list[Run]:
        """The runs at the contender's best rate; none without one."""
        seeds = () if lr is None else self.values["seeds"]
        return [self.run(contender, lr, seed) for seed in seeds]

    def shared_runs(self, contender: str) -> list[Run]:
        """The runs at the rate that is the same for all."""
        shared = self.values["shared"] or {"lr": 0.0, "seeds": ()}
        return [self.run(contender, shared["lr"], seed) for seed in shared["seeds"]]


_TUNING: Keys = {
    "trials": (config.COUNT, 6),
    "grid": (config.COUNT, 5),
    "seed": (config.WHOLE, 100),
    "by": (config.TEXT, "score"),
}
_SEARCH: Keys = {"low": (config.RATE, REQUIRED), "high": (config.RATE, REQUIRED)}
_SHARED: Keys = {"lr": (config.RATE, REQUIRED), "seeds": (config.SEEDS, REQUIRED)}
_KEYS: Keys = {
    "workload": (config.TEXT, REQUIRED),
    "options": (config.LINES, {}),
    "title": (config.TEXT, None),
    "contenders": (config.NAMES, list(CONTENDERS)),
    "tuning": (config.LINES, {}),
    "search": (config.LINES, None),
    "reach": (config.LINES, {}),
    "seeds": (config.SEEDS, REQUIRED),
    "shared": (config.LINES, None),
    "target": (config.NUMBER, REQUIRED),
    "tolerance": (config.RATE, REQUIRED),
    "chosen_on": (config.SWITCH, False),
    "output_dir": (config.TEXT, "runs/comparisons"),
}


def read_comparison(path: str | Path, **replacements: Any) -> Comparison:
    """Read a file like those of configs/comparisons/. Its keys:

        workload: the task's name.
        options: other values for fields of the workload.
        title: as in reports.
        contenders: names of `contenders.CONTENDERS`; all where it is absent.
        tuning: how a learning rate is searched, alike for every contender: `trials` (runs of
            each), `grid` (how many of them, the first, are spread evenly over the logarithm of its
            range, from end to end; Optuna proposes the others' rates), `seed` (of each of these
            runs, and of Optuna), `by` (`score`, or what else among a run's metrics decides).
        search: `low` and `high`, the ends of that range; absent: each contender's own.
        reach: contender: further rates, to find where the range that works ends. They are run like
            trials, but the best rate is never one of them.
        seeds: each contender runs once with each, at its best rate.
        shared: `lr` and `seeds` of runs at one rate for all, as in the paper.
        target: a score to reach, chosen before any tuning.
        tolerance: how far below the best AdamW a rate may score that still works; in the metric's
            units.
        chosen_on: whether this workload took part in choosing a preset among the contenders.
        output_dir: the folder of all results.

    Args:
        path: the file.
        replacements: values that win over the file's, None for none: `data_dir`,
            `model_name_or_path`, `output_dir`, and `contenders`, those of the file to keep.

    Raises:
        UsageError: the file cannot be read, a value is wrong, or it names something that does not
            exist.
    """
    given = {name: value for name, value in replacements.items() if value is not None}
    wanted = given.pop("contenders", None)
    values = load(path, _KEYS, **given)
    workload, values["options"] = workload_of(values, given)
    for name in values["contenders"]:
        choose(f"{path}: contender", name, CONTENDERS)
    reach: Keys = dict.fromkeys(values["contenders"], (config.RATES, None))
    parts = {"tuning": _TUNING, "search": _SEARCH, "reach": reach, "shared": _SHARED}
    for name, keys in parts.items():
        if values[name] is not None:
            values[name] = checked(values[name], keys, f"{path}: {name}")
    values["reach"] = {name: rates for name, rates in values["reach"].items() if rates}
    values |= {name: float(values[name]) for name in ("target", "tolerance")}
    values["title"] = values["title"] or workload.name
    values["contenders"] = keep(values["contenders"], wanted)
    comparison = Comparison(workload, values, Path(values.pop("output_dir")))
    _check_plan(comparison, path)
    return comparison


def _check_plan(comparison: Comparison, path: str | Path) -> None:
    tuning, search = comparison.tuning, comparison.values["search"]
    if tuning["trials"] < tuning["grid"]:
        raise UsageError(
            f"{path}: tuning: trials {tuning['trials']} is less than grid {tuning['grid']}: the "
            "grid's runs are the first of the trials"
        )
    if tuning["seed"] in comparison.values["seeds"]:
        raise UsageError(
            f"{path}: seeds have tuning.seed {tuning['seed']}: keep what is reported apart from "
            "what was tuned on"
        )
    if search and search["low"] >= search["high"]:
        raise UsageError(
            f"{path}: search: low {search['low']:g} must be less than high {search['high']:g}"
        )
    for name in comparison.contenders:  # its package may be missing
        comparison.workload.settings(name, {"lr": comparison.range(name)[0]})
