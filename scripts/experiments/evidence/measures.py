"""What follows from a file of results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from experiments import stats
from experiments.table import SHARES


class Result:
    """One file.

    Attributes:
        kind: `comparison`, `experiment` or `ablation`.
        name: the rest of the file's name.
        data: what it holds.
        entries: contender or label: what it holds of it.
    """

    def __init__(self, kind: str, name: str, data: Mapping[str, Any]) -> None:
        self.kind, self.name, self.data = kind, name, data
        self.file = f"{kind}-{name}.json"
        self.title = str(data.get("title") or data.get("workload"))
        self.metric, self.higher = data.get("metric", ""), data.get("higher_is_better", True)
        self.entries: Mapping[str, Any] = data.get("contenders") or data.get("results") or {}

        # an experiment's labels that were not run
        self.empty = [label for label, entry in self.entries.items() if entry.get("runs") == []]

    @property
    def complete(self) -> bool:
        """Whether all of the plan was run."""
        return self.data.get("complete", not self.data.get("failures") and not self.empty)

    @cached_property
    def all_runs(self) -> pd.DataFrame:
        """A row for each run; `of` is its contender or label, `part` the list that it is in."""
        curves: dict[str, list] = {"losses": [], "scores": [], "windows": [], "path": []}
        numbers = ["score", "train_loss", "steps", "seconds", "increases", "signal_noise"]
        rows = [
            {"of": name, "part": part, **curves, **run}
            for name, entry in self.entries.items()
            for part in ("runs", "final")
            for run in entry.get(part) or ()
        ]
        columns = ["of", "part", "lr", "seed", "diverged", *numbers, *curves]
        kinds = {"diverged": bool, **dict.fromkeys(numbers, float)}
        frame = pd.DataFrame(rows, columns=columns).astype(kinds)
        windows = [[window for _, window in run] for run in frame.windows]
        return frame.assign(mean_window=[np.mean(each or math.nan) for each in windows])

    def runs(self, name: str, part: str = "runs") -> pd.DataFrame:
        """Those of a contender or label."""
        return self.all_runs[(self.all_runs["of"] == name) & (self.all_runs.part == part)]

    def better(self, label: str) -> stats.Estimate | None:
        """What a label's mean score is better by than the first one's.

        In points where scores are shown in percent; else in the metric's unit.
        """
        factor = (100 if self.metric in SHARES else 1) * (1 if self.higher else -1)
        both = (
            factor * self.runs(each).score.dropna() for each in (label, next(iter(self.entries)))
        )
        return stats.welch(*both)
