"""What follows from a comparison: what a wrong learning rate costs, who is ahead, and of whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from experiments import stats
from experiments.compact import has_all
from experiments.contenders import CONTENDERS
from experiments.evidence.results import Result
from experiments.table import SHARES

ADAMW = "adamw"
FINETUNE = "dwmgrad-finetune"
CONTROL = "adamw-control"
DEAF = "deaf"
"""In the studies of a deaf window, beside a label `finetune`."""


class Compared(Result):
    """One comparison."""

    def __init__(self, first: str, name: str, data: Mapping[str, Any]) -> None:
        super().__init__(first, name, data)
        self.plan: Mapping[str, Any] = data["plan"]
        self.chosen_on: list[str] = self.plan.get("chosen_on") or []

    @cached_property
    def all_runs(self) -> pd.DataFrame:
        """Each run also with its `title`, whether it is `rateless`, and its `points`."""
        frame = super().all_runs
        entries = frame["of"].map(self.entries.get)
        return frame.assign(
            title=[
                e["title"] + mark(name, e) for name, e in zip(frame["of"], entries, strict=True)
            ],
            rateless=[bool(entry["rateless"]) for entry in entries],
            points=points(frame.score, self.data),
        )

    def swept(self, name: str) -> bool:
        """Whether a contender's first stage is whole: each rate of the plan with each seed."""
        entry = self.entries.get(name)
        return entry is not None and has_all(entry["runs"], entry["rateless"], self.plan)

    def rates(self, name: str | None = None) -> pd.DataFrame:
        """The runs of the first stage; of one contender, or of all."""
        frame = self.all_runs[self.all_runs.part == "runs"]
        return frame if name is None else frame[frame["of"] == name]

    def means(self, name: str) -> pd.Series:
        """Learning rate: the mean of the first stage's points."""
        return self.rates(name).groupby("lr").points.mean()

    def best_beside(self, name: str) -> float:
        """AdamW's points at its best rate, with a contender's seeds; NaN where it has none."""
        runs = self.rates(ADAMW)
        same = runs[runs.seed.isin(self.rates(name).seed)]
        return float(same.groupby("lr").points.mean().max())

    def ahead(self, name: str) -> float:
        """The points that its best rate is better than AdamW's, with its first stage's seeds."""
        return float(self.means(name).max() - self.best_beside(name))

    def at_best(self, name: str) -> pd.DataFrame:
        """A contender's runs at its best rate; empty where there are none.

        They are those of the second stage where AdamW has one. Else they are those that the rate
        was chosen by, or, while runs are missing, the best so far.
        """
        if self.renewed:
            return self.runs(name, "final")
        runs = self.rates(name)
        if runs.empty:
            return runs
        return runs[runs.lr == (self.entries[name]["best_lr"] or self.means(name).idxmax())]

    @property
    def renewed(self) -> bool:
        """Whether there is a second stage."""
        return len(self.runs(ADAMW, "final")) > 0

    def apart(self, name: str, other: str = ADAMW) -> bool:
        """Whether some of the runs that it is judged by were not made on the other's machine."""
        own, theirs = self.at_best(name), self.at_best(other)
        if own.empty:
            own, theirs = self.rates(name), self.rates(other)
        known = set(theirs.on.dropna())
        return bool(known and {*own.on.dropna()} - known)

    def difference(self, name: str, other: str = ADAMW) -> stats.Estimate | None:
        """By how many points a contender is better than another, each at its best rate."""
        return stats.welch(self.at_best(name).points, self.at_best(other).points)

    def ahead_anew(self, name: str) -> float:
        """The points that it is better than AdamW with new seeds; NaN where either has none."""
        found = self.difference(name) if self.renewed else None
        return float("nan") if found is None else found.mean

    def deviations(self, found: stats.Estimate | None) -> stats.Estimate | None:
        """Points of the second stage in standard deviations of AdamW's seeds.

        None without that stage, or an interval.
        """
        unit = float(self.runs(ADAMW, "final").points.std())
        if not self.renewed or found is None or found.interval is None or unit == 0:
            return None
        return stats.Estimate(found.mean / unit, found.variance / unit**2, found.freedom, 1)


def mark(name: str, entry: Mapping[str, Any]) -> str:
    """A mark of runs that today's rule has not made."""
    known = CONTENDERS.get(name)
    return ", by an older rule" if known and known.rule != entry.get("rule") else ""


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


def gains(
    comparisons: Sequence[Compared], results: Sequence[Result]
) -> dict[str, list[stats.Estimate | None]]:
    """By how many points finetune is ahead of each control, workload by workload; None: not run.

    The controls: AdamW with its betas, and a deaf window, whose studies are among `results`.
    """
    studies = {each.data["workload"]: each for each in results if DEAF in each.entries}
    deaf = [studies.get(each.data["workload"]) for each in comparisons]
    return {
        "AdamW, betas 0.6 and 0.998": [
            each.difference(FINETUNE, CONTROL) if len(each.runs(CONTROL, "final")) else None
            for each in comparisons
        ],
        "a deaf window": [study.better("finetune", DEAF) if study else None for study in deaf],
    }
