"""A plan without tuning: every optimizer over the same learning rates, five decades of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from glue.configs import read_settings

from experiments import config
from experiments.compact import failure_record, head, run_record
from experiments.config import REQUIRED, Keys, Plan, keep, load, workload_of
from experiments.contenders import EVERY, choose, get_contender
from experiments.runner import Failure, Run, made
from experiments.table import SHARES, table

HALF_DECADES = [float(f"{10 ** (-5 + n / 2):.2g}") for n in range(11)]
"""From 1e-5 to 1."""
WITHOUT = 1.0
"""The learning rate of optimizers that need none."""
WORKS = 3.0
"""A rate works that is at most so many points worse than AdamW's best."""

_RATES = config.KindOfValue(
    "`all`, or a list of rates", lambda value: value == "all" or config.RATES.fits(value)
)
_KEYS: Keys = {
    "workload": (config.TEXT, REQUIRED),
    "options": (config.LINES, {}),
    "title": (config.TEXT, None),
    "contenders": (config.NAMES, REQUIRED),
    "rates": (_RATES, HALF_DECADES),
    "seeds": (config.SEEDS, REQUIRED),
    "chosen_on": (config.SWITCH, False),
    "output_dir": (config.TEXT, "runs/rates"),
}


class RatePlan(Plan):
    """What a file asks for; its values: see `read_rate_plan`."""

    def runs(self) -> dict[str, list[Run]]:
        """Contender: a run at each of its rates with each seed."""
        return {
            name: [
                Run(self.workload, name, {"lr": lr}, seed)
                for lr in ([WITHOUT] if get_contender(name).rateless else self.values["rates"])
                for seed in self.values["seeds"]
            ]
            for name in self.contenders
        }


def has_rates(path: str | Path) -> bool:
    """Whether the file is of this kind: it has `rates`."""
    return "rates" in read_settings(path)


def read_rate_plan(path: str | Path, **replacements: Any) -> RatePlan:
    """Read a file like configs/rates/cora.yaml. Its keys:

        workload, options, title, output_dir: as in `comparison.read_comparison`.
        contenders: names of `contenders.EVERY`.
        rates: the learning rates of all of them; `all`: those of `HALF_DECADES`.
        seeds: each contender runs once with each, at each rate.
        chosen_on: whether this workload took part in choosing a preset among the contenders.

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
    if values["rates"] == "all":
        values["rates"] = HALF_DECADES
    workload, values["options"] = workload_of(values, given)
    for name in values["contenders"]:
        choose(f"{path}: contender", name, EVERY)
        workload.settings(name, {"lr": values["rates"][0]})
    values["title"] = values["title"] or workload.name
    values["contenders"] = keep(values["contenders"], wanted)
    return RatePlan(workload, values, Path(values.pop("output_dir")))


def rates_record(plan: RatePlan, failures: Sequence[Failure], command: str) -> dict[str, Any]:
    """What there is of it, for docs/results."""
    results = {name: made(runs, plan.output_dir) for name, runs in plan.runs().items()}
    return {
        "kind": "rates",
        "title": plan.title,
        **head(plan.workload, [each for some in results.values() for each in some], command),
        "plan": plan.plan(),
        "contenders": {
            name: {
                "title": get_contender(name).title,
                "rule": get_contender(name).rule,
                "rateless": get_contender(name).rateless,
                "runs": [run_record(each) for each in some],
            }
            for name, some in results.items()
        },
        "failures": list(map(failure_record, failures)),
    }


def frame(record: Mapping[str, Any]) -> pd.DataFrame:
    """A row a run: contender, title, rateless, lr, seed, score, seconds; and its `points`."""
    rows = [
        {"contender": name, "title": own["title"], "rateless": own["rateless"], **run}
        for name, own in record["contenders"].items()
        for run in own["runs"]
    ]
    runs = pd.DataFrame(rows, columns=None if rows else ["contender", "lr", "score"])
    runs["points"] = points(runs.score, record)
    return runs


def points(scores: pd.Series, record: Mapping[str, Any]) -> pd.Series:
    """Scores in points, higher is better: a share's hundredths, or -100 times a logarithm.

    A run that diverged is as bad as the worst that did not.
    """
    scores = scores.astype(float)
    if record["metric"] in SHARES:
        found = 100 * scores
    elif record["higher_is_better"]:
        found = scores
    else:
        found = -100 * np.log(scores)
    return found.fillna(found.min())


def rates_table(record: Mapping[str, Any]) -> str:
    """A row an optimizer, its mean score at each rate, and how many decades of rates work."""
    runs = frame(record)
    if runs.empty:
        return "no results"
    rates = sorted(runs.lr[~runs.rateless].unique())
    best = runs[runs.contender == "adamw"].groupby("lr").points.mean().max()
    factor = 100 if record["metric"] in SHARES else 1
    rows = []
    for title, own in runs.groupby("title", sort=False):
        scores, means = own.groupby("lr").score.mean(), own.groupby("lr").points.mean()
        free = bool(own.rateless.iloc[0])
        cells = {f"{lr:.0e}": f"{factor * scores[lr]:.2f}" if lr in scores else "-" for lr in rates}
        if free:
            cells = dict.fromkeys(cells, f"{factor * scores.iloc[0]:.2f}")
        works = int((means > best - WORKS).sum())
        rows.append(
            {
                "optimizer": title,
                **cells,
                "decades that work": "all" if free and works else f"{works / 2:g}",
                "s per run": f"{own.seconds.median():.3g}",
            }
        )
    return table(rows)
