"""The committed results: read, checked, and as tables of runs."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from glue.errors import UsageError

from experiments import stats
from experiments.compact import CURVES
from experiments.table import SHARES, score_head, spread, table


class Result:
    """One file, FIRST-NAME.json.

    Attributes:
        kind: `comparison`, `experiment` or `ablation`.
        name: the file's, without its first word.
        data: what it holds.
        entries: contender or label: what it holds of it.
    """

    def __init__(self, first: str, name: str, data: Mapping[str, Any]) -> None:
        self.kind, self.name, self.data = data.get("kind", first), name, data
        self.file = f"{first}-{name}.json"
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
        curves: dict[str, list] = {name: [] for name in (*CURVES, "path", "skipped")}
        numbers = ["score", "train_loss", "steps", "seconds", "increases", "signal_noise"]
        rows = [
            {"of": name, "part": part, **curves, **run}
            for name, entry in self.entries.items()
            for part in ("runs", "final")
            for run in entry.get(part) or ()
        ]
        columns = ["of", "part", "lr", "seed", "diverged", "on", *numbers, *curves]
        kinds = {"diverged": bool, **dict.fromkeys(numbers, float)}
        frame = pd.DataFrame(rows, columns=columns).astype(kinds)
        windows = [[window for _, window in run] for run in frame.windows]
        return frame.assign(
            mean_window=[np.mean(each or math.nan) for each in windows],
            skips=[len(each) if each else math.nan for each in frame.skipped],
        )

    def runs(self, name: str, part: str = "runs") -> pd.DataFrame:
        """Those of a contender or label."""
        return self.all_runs[(self.all_runs["of"] == name) & (self.all_runs.part == part)]

    def better(self, label: str, than: str | None = None) -> stats.Estimate | None:
        """What a label's mean score is better by than another's; by default than the first one's.

        In points where scores are shown in percent; else in the metric's unit.
        """
        factor = (100 if self.metric in SHARES else 1) * (1 if self.higher else -1)
        other = than or next(iter(self.entries))
        ours, theirs = (factor * self.runs(each).score.dropna() for each in (label, other))
        return stats.welch(ours, theirs)

    def markdown(self) -> str:
        """A row for each label: its rate, mean ± standard deviation over the seeds, and times.

        A run that diverged has no score: it is counted in its row and is in no mean. A label
        without results has no row.
        """
        rows = []
        for label, entry in self.entries.items():
            runs = self.runs(label)
            if len(runs):
                lost = f", {runs.diverged.sum()} diverged" if runs.diverged.any() else ""
                rows.append(
                    {
                        "optimizer": label,
                        "lr": f"{entry['settings']['lr']:g}",
                        score_head(self.metric, self.higher): spread(runs.score, self.metric),
                        "seeds": f"{len(runs)}{lost}",
                        "training loss": spread(runs.train_loss),
                        "s per run": f"{runs.seconds.median():.3g}",
                    }
                )
        return table(rows) or "no results"


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def positive_number(value: Any) -> bool:
    return number(value) and value > 0


def number_or_null(value: Any) -> bool:
    return value is None or number(value)


def list_of_pairs(value: Any) -> bool:
    pairs = value if isinstance(value, list) else [None]
    return all(isinstance(p, list) and len(p) == 2 and all(map(number, p)) for p in pairs)


# Forms of JSON: a type, a test, a list of one form, or a mapping, in which "?" ends the name of
# what may be absent or empty, and "*" alone stands for every name.
_RUN: dict[str, Any] = {
    **dict.fromkeys(("score", "train_loss"), number_or_null),
    **dict.fromkeys(("seed", "steps", "seconds"), number),
    **dict.fromkeys(("losses?", "scores?", "windows?", "path?"), list_of_pairs),
    **{"diverged": bool, "on?": str},
}
_COMMON = {
    **{"workload": str, "metric": str, "higher_is_better": bool, "steps": int},
    **{"machine": [dict], "versions": [dict]},
}
_COMPARISON = {
    **{"title": str, "command": str, "complete": bool},
    "plan": {
        **{"contenders": list, "rates": list, "seeds": list, "chosen_on": list, "by": str},
        "final?": {"seeds": list, "options": dict},
    },
    "description": dict,
    "contenders": {
        "*": {
            **{"title": str, "rateless": bool, "best_lr": number_or_null, "defaults": dict},
            **dict.fromkeys(("runs", "final"), [{**_RUN, "lr": positive_number}]),
        }
    },
}
_EXPERIMENT = {**_COMMON, "results": {"*": {"settings": {"lr": number}, "runs": [_RUN]}}}
FORMS: dict[str, Any] = {
    "comparison": {**_COMMON, **_COMPARISON},
    "experiment": _EXPERIMENT,
    "ablation": _EXPERIMENT,
}


def read_result(path: Path, kind: str) -> dict[str, Any]:
    """One file's values; a UsageError, which names it, if it is no result of this kind."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); make it again") from error
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise UsageError(f"{path}: not a file of kind {kind}; make it again or rename it")
    _check(data, FORMS[kind], str(path))
    return data


def _check(value: Any, form: Any, where: str) -> None:
    """Raise a UsageError that says where `value` is not of its form."""
    kind: Callable[[Any], Any] = type(form) if isinstance(form, (dict, list)) else form
    if not (isinstance(value, kind) if isinstance(kind, type) else kind(value)):
        expected, got = kind.__name__.replace("_", " "), reprlib.repr(value)
        raise UsageError(f"{where}: expected {expected}, got {got}; make it again")
    if isinstance(form, list):
        for each in value:
            _check(each, form[0], where)
    elif isinstance(form, dict) and "*" in form:
        for name, each in value.items():
            _check(each, form["*"], f"{where}: {name}")
    elif isinstance(form, dict):
        for name, of in form.items():
            key = name.removesuffix("?")
            if value.get(key) or key == name:
                if key not in value:
                    raise UsageError(f"{where}: {key} is missing; make it again")
                _check(value[key], of, f"{where}: {key}")
