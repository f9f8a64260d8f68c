"""A comparison's YAML file: which optimizers, how each one's learning rate is sought, the seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from glue.errors import UsageError

from experiments.config import keep, load, mapping, require, whole_numbers
from experiments.contenders import get_contender
from experiments.runner import Run
from experiments.workload import Workload
from experiments.workloads import make_workload


@dataclass(frozen=True)
class Tuning:
    """How a learning rate is sought: the same work for every contender.

    Attributes:
        trials: runs of each contender.
        grid: how many of them, the first, are spread evenly over the logarithm of its range, from
            end to end; the rates of the others are proposed by Optuna.
        seed: of each of these runs, and of Optuna.
        by: what the best one is best by: `score`, or a name among a run's metrics.
    """

    trials: int = 6
    grid: int = 5
    seed: int = 100
    by: str = "score"


@dataclass(frozen=True)
class Range:
    """Where learning rates are sought, in place of each contender's own range."""

    low: float
    high: float


@dataclass(frozen=True)
class Shared:
    """One learning rate for all contenders, as in the paper."""

    lr: float
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """What a file asks for.

    Attributes:
        workload: the task.
        options: the fields of the workload that the file or the command line sets.
        title: as in reports.
        contenders: names of `contenders.CONTENDERS`.
        tuning: how each one's learning rate is sought.
        search: where; None: in each one's own range.
        reach: contender: further rates, to find where the range that works ends. They are run like
            trials, but the best rate is never one of them.
        seeds: each contender runs once with each, at its best rate.
        shared: runs at one rate for all; None: none.
        target: a score to reach, chosen before any tuning.
        chosen_on: whether this workload took part in choosing a preset among the contenders.
        tolerance: how far below the best AdamW a rate may score that still works; in the metric's
            units.
        output_dir: the folder of all results.
    """

    workload: Workload
    options: Mapping[str, Any]
    title: str
    contenders: tuple[str, ...]
    tuning: Tuning
    search: Range | None
    reach: Mapping[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    shared: Shared | None
    target: float
    tolerance: float
    chosen_on: bool
    output_dir: Path

    @property
    def higher_is_better(self) -> bool:
        """Of what `tuning.by` names; of a loss, the lower one is."""
        return self.workload.higher_is_better and not self.tuning.by.endswith("loss")

    def range(self, contender: str) -> Range:
        """Where the contender's learning rate is sought."""
        if self.search:
            return self.search
        bounds = self.workload.search_space(contender)["lr"]
        return Range(bounds["low"], bounds["high"])

    def run(self, contender: str, lr: float, seed: int) -> Run:
        """A run of the contender; what else it sets are the workload's defaults."""
        return Run(self.workload, contender, {"lr": lr}, seed)

    def grid_runs(self, contender: str) -> list[Run]:
        """The first trials of the contender, from the lowest rate to the highest."""
        bounds = self.range(contender)
        rates = np.geomspace(bounds.low, bounds.high, self.tuning.grid)
        return [self.run(contender, float(f"{lr:.2g}"), self.tuning.seed) for lr in rates]

    def reach_runs(self, contender: str) -> list[Run]:
        """The runs at the rates of `reach`."""
        rates = self.reach.get(contender, ())
        return [self.run(contender, lr, self.tuning.seed) for lr in rates]

    def seed_runs(self, contender: str, lr: float | None) -> list[Run]:
        """The runs at the contender's best rate; none without one."""
        return [] if lr is None else [self.run(contender, lr, seed) for seed in self.seeds]

    def shared_runs(self, contender: str) -> list[Run]:
        """The runs at the rate that is the same for all."""
        shared = self.shared or Shared(0.0, ())
        return [self.run(contender, shared.lr, seed) for seed in shared.seeds]

    def plan(self) -> dict[str, Any]:
        """The file's values, complete, without folders."""
        options = dict(self.options)
        if "model_name_or_path" in options:
            options["model_name_or_path"] = Path(str(options["model_name_or_path"])).name
        return {
            "workload": self.workload.name,
            "options": options,
            "title": self.title,
            "contenders": list(self.contenders),
            "tuning": asdict(self.tuning),
            "search": asdict(self.search) if self.search else None,
            "reach": {name: list(rates) for name, rates in self.reach.items()},
            "seeds": list(self.seeds),
            "shared": {"lr": self.shared.lr, "seeds": list(self.shared.seeds)}
            if self.shared
            else None,
            "target": self.target,
            "tolerance": self.tolerance,
            "chosen_on": self.chosen_on,
        }


KEYS = tuple(field.name for field in fields(Comparison))


def read_comparison(path: str | Path, **replacements: Any) -> Comparison:
    """Read a file like those of configs/comparisons/.

    Its keys are the attributes of `Comparison`, `workload` by its name. `tuning`, `search`,
    `reach`, `shared`, `options`, `title`, `chosen_on` and `output_dir` may be absent.

    Args:
        path: the file.
        replacements: values that win over the file's, None for none: `data_dir`,
            `model_name_or_path`, `output_dir`, and `contenders`, those of the file to keep.

    Raises:
        UsageError: the file cannot be read, a value is wrong, or it names something that does not
            exist.
    """
    values = load(path, KEYS)
    given = {name: value for name, value in replacements.items() if value is not None}
    require(values, ("workload", "contenders", "seeds", "target", "tolerance"), path)
    options = dict(mapping(values, "options", path))
    if "model_name_or_path" in given:
        options["model_name_or_path"] = given["model_name_or_path"]
    workload = make_workload(str(values["workload"]), given.get("data_dir"), **options)
    comparison = Comparison(
        workload=workload,
        options=options,
        title=str(values.get("title") or workload.name),
        contenders=_contenders(values["contenders"], given.get("contenders"), path),
        tuning=_tuning(values, path),
        search=_range(values, path),
        reach=_reach(values, path),
        seeds=whole_numbers(values["seeds"], "seeds", path),
        shared=_shared(values, path),
        target=_number(values, "target", path, positive=False),
        tolerance=_number(values, "tolerance", path),
        chosen_on=_switch(values, "chosen_on", path),
        output_dir=Path(
            str(given.get("output_dir") or values.get("output_dir") or "runs/comparisons")
        ),
    )
    if comparison.tuning.seed in comparison.seeds:
        raise UsageError(
            f"{path}: seeds have tuning.seed {comparison.tuning.seed}: keep what is reported "
            "apart from what was tuned on"
        )
    for name in comparison.contenders:  # its package may be missing
        workload.settings(name, {"lr": comparison.range(name).low})
    return comparison


def _contenders(value: Any, wanted: Any, path: str | Path) -> tuple[str, ...]:
    if not isinstance(value, list) or len(set(map(str, value))) < len(value):
        raise UsageError(f"{path}: contenders {value!r}: expected a list of different names")
    for name in value:
        try:
            get_contender(str(name))
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error
    return tuple(keep({name: name for name in value}, wanted))


def _tuning(values: Mapping[str, Any], path: str | Path) -> Tuning:
    found = mapping(values, "tuning", path, [field.name for field in fields(Tuning)])
    tuning = Tuning(**found)
    for name, least in (("trials", 1), ("grid", 1), ("seed", 0)):
        value = getattr(tuning, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(
                f"{path}: tuning.{name} {value!r}: expected a whole number from {least} on"
            )
    if tuning.trials < tuning.grid:
        raise UsageError(
            f"{path}: tuning.trials {tuning.trials} is less than tuning.grid {tuning.grid}: the "
            "grid's runs are the first of the trials"
        )
    if not isinstance(tuning.by, str) or not tuning.by:
        raise UsageError(f"{path}: tuning.by {tuning.by!r}: expected score or a metric's name")
    return tuning


def _range(values: Mapping[str, Any], path: str | Path) -> Range | None:
    found = mapping(values, "search", path, ("low", "high"))
    if not found:
        return None
    low, high = (_number(found, name, f"{path}: search") for name in ("low", "high"))
    if low >= high:
        raise UsageError(f"{path}: search: low {low:g} must be less than high {high:g}")
    return Range(low, high)


def _reach(values: Mapping[str, Any], path: str | Path) -> dict[str, tuple[float, ...]]:
    names = [str(name) for name in values["contenders"]]
    found = mapping(values, "reach", path, names)
    rates: dict[str, tuple[float, ...]] = {}
    for name, given in found.items():
        if not isinstance(given, list) or not given:
            raise UsageError(f"{path}: reach: {name}: expected a list of rates, got {given!r}")
        where = f"{path}: reach"
        rates[name] = tuple(_number({name: rate}, name, where) for rate in given)
    return rates


def _shared(values: Mapping[str, Any], path: str | Path) -> Shared | None:
    found = mapping(values, "shared", path, ("lr", "seeds"))
    if not found:
        return None
    require(found, ("lr", "seeds"), f"{path}: shared")
    seeds = whole_numbers(found["seeds"], "shared.seeds", path)
    return Shared(_number(found, "lr", f"{path}: shared"), seeds)


def _switch(values: Mapping[str, Any], name: str, where: str | Path) -> bool:
    value = values.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"{where}: {name} {value!r}: expected true or false")
    return value


def _number(
    values: Mapping[str, Any], name: str, where: str | Path, positive: bool = True
) -> float:
    value: Any = values.get(name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or (positive and value <= 0):
        kind = "a positive number" if positive else "a number"
        raise UsageError(f"{where}: {name} {value!r}: expected {kind}")
    return float(value)
