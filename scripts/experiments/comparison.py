"""A comparison's YAML file: every optimizer at the same learning rates, then at its best one.

First stage: every optimizer over the same rates, several seeds each. It shows what a wrong rate
costs, and chooses each optimizer's rate by the mean over the seeds. Second stage: new seeds there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
from glue.errors import UsageError, choose

from experiments import config
from experiments.config import REQUIRED, Keys, checked, load, workload_of
from experiments.contenders import CONTENDERS, get_contender
from experiments.runner import Run, made
from experiments.workload import Workload

HALF_DECADES = [float(f"{10 ** (-5 + n / 2):.2g}") for n in range(11)]
"""From 1e-5 to 1."""
WITHOUT = 1.0
"""The learning rate of optimizers that need none."""

NO_FINAL: dict[str, Any] = {"seeds": [], "options": {}}
"""A plan's second stage where there is none."""

_FINAL: Keys = {"seeds": (config.SEEDS, REQUIRED), "options": (config.LINES, {})}
_KEYS: Keys = {
    "workload": (config.TEXT, REQUIRED),
    "options": (config.LINES, {}),
    "title": (config.TEXT, None),
    "contenders": (config.NAMES, REQUIRED),
    "rates": (config.RATES, REQUIRED),
    "seeds": (config.SEEDS, REQUIRED),
    "by": (config.TEXT, "score"),
    "final": (config.LINES, NO_FINAL),
    "chosen_on": (config.NAMES, []),
    "output_dir": (config.TEXT, "runs/comparisons"),
}


@dataclass(frozen=True)
class Comparison:
    """What a file asks for.

    Attributes:
        workload: the task.
        values: the file's, complete and without folders; see `read_comparison`.
        output_dir: the folder of all results.
        final: the workload of the second stage.
        contenders: the names of those that run now.
    """

    workload: Workload
    values: Mapping[str, Any]
    output_dir: Path
    final: Workload
    contenders: list[str]

    def rate_runs(self) -> dict[str, list[Run]]:
        """The first stage, contender: a run at each of its rates with each seed."""
        return {
            name: [
                Run(self.workload, name, {"lr": lr}, seed)
                for lr in ([WITHOUT] if get_contender(name).rateless else self.values["rates"])
                for seed in self.values["seeds"]
            ]
            for name in self.contenders
        }

    def best_lr(self, contender: str) -> float | None:
        """The rate with the best mean of `by` over the seeds, of equals the lowest.

        A rate that diverged with a seed is none. None: runs are missing, or all rates diverged.
        """
        runs = self.rate_runs()[contender]
        results = made(runs, self.output_dir)
        if len(results) < len(runs):
            return None
        by = self.values["by"]
        found = [(result["settings"]["lr"], told(result, by)) for result in results]
        return best_rate(found, by, self.workload.higher_is_better)

    def final_runs(self, known: Mapping[str, Any] = MappingProxyType({})) -> dict[str, list[Run]]:
        """The second stage; empty for a contender whose first one is not at its end.

        `known` are best rates of contenders whose first stage may have been made elsewhere.
        """
        seeds = self.values["final"]["seeds"]
        names = self.contenders if seeds else ()
        rates = {name: known.get(name) or self.best_lr(name) for name in names}
        return {
            name: [Run(self.final, name, {"lr": lr}, seed) for seed in seeds]
            for name, lr in rates.items()
            if lr is not None
        }


def best_rate(found: Sequence[tuple[float, float | None]], by: str, higher: bool) -> float | None:
    """The best of some rates, each with a value of what decides, `by`; None: the run diverged.

    `higher`: whether a higher score is better, where it is the score that decides.
    """
    values = pd.Series([value for _, value in found], [lr for lr, _ in found], dtype=float)
    means = values.drop(values.index[values.isna()]).groupby(level=0).mean()
    higher = higher if by == "score" else not by.endswith("loss")
    return None if means.empty else float(means.idxmax() if higher else means.idxmin())


def told(result: Mapping[str, Any], by: str) -> float | None:
    """A run's value of what decides, None if it diverged; a UsageError if it has no such metric."""
    if result["score"] is None:
        return None
    values = {"score": result["score"], **result.get("metrics", {})}
    if by not in values:
        raise UsageError(f"by {by!r}: a run of {result['workload']} has {', '.join(values)}")
    return values[by]


def read_comparison(path: str | Path, **replacements: Any) -> Comparison:
    """Read a file like those of configs/comparisons/; a UsageError says what is wrong with it.

    Its keys:

        base: a file beside it, which has what this one does not say.
        workload: the task's name.
        options: other values for fields of the workload.
        title: as in reports.
        contenders: names of `contenders.CONTENDERS`.
        rates: the learning rates of all of them; `all`: those of `HALF_DECADES`.
        seeds: each contender runs once with each, at each rate.
        by: what chooses the best rate: `score`, or what else is among a run's metrics; of a name
            that ends with `loss` the least is the best, of others the most.
        final: the second stage, if any: its `seeds`, and `options` of the workload that are other
            ones there.
        chosen_on: those of the contenders whose preset this workload took part in choosing.
        output_dir: the folder of all results.

    Replacements win over the file's values, None for none: `data_dir`, `model_name_or_path`,
    `output_dir`, and `contenders`, those to keep, whose packages alone are needed.
    """
    given = {name: value for name, value in replacements.items() if value is not None}
    wanted = given.pop("contenders", None)
    values = load(path, _KEYS, **given)
    if values["rates"] == "all":
        values["rates"] = HALF_DECADES
    options = values["options"]
    workload, values["options"] = workload_of(values, given)
    final = workload
    if values["final"] != NO_FINAL:
        values["final"] = checked(values["final"], _FINAL, f"{path}: final")
        if both := sorted({*values["seeds"]} & {*values["final"]["seeds"]}):
            raise UsageError(
                f"{path}: final: seeds {both} are among those that choose the rate: keep the two "
                "apart"
            )
        other = {**options, **values["final"]["options"]}
        final, _ = workload_of({**values, "options": other}, given)
    for name in values["chosen_on"]:
        choose(f"{path}: chosen_on", name, values["contenders"])
    for name in values["contenders"]:
        choose(f"{path}: contender", name, CONTENDERS)
    contenders = config.keep(values["contenders"], wanted)
    for name in contenders:
        workload.settings(name, {"lr": values["rates"][0]})
    values["title"] = values["title"] or workload.name
    return Comparison(workload, values, Path(values.pop("output_dir")), final, contenders)
