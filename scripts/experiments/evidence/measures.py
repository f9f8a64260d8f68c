"""What follows from a file of results; of a comparison, how each contender compares to AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from glue.errors import UsageError

from experiments import stats
from experiments.contenders import CONTENDERS
from experiments.evidence.results import read_result
from experiments.table import SHARES

ADAMW = "adamw"
FASTER = 0.9
"""The share of AdamW's steps to reach its final training loss in."""
MET, NOT_MET, NOT_MEASURED = "met", "not met", "not measured"


def read_results(folder: Path) -> list[Result]:
    """All results of a folder, by kind and name.

    Raises:
        UsageError: no such folder, or a file in it that is no result; the message names it.
    """
    if not folder.is_dir():
        raise UsageError(f"--results {folder}: no such folder; it should hold comparison-*.json")
    return [
        (Measured if kind == "comparison" else Result)(
            kind, path.stem.removeprefix(f"{kind}-"), read_result(path, kind)
        )
        for kind in ("comparison", "experiment", "ablation")
        for path in sorted(folder.glob(f"{kind}-*.json"))
    ]


def gains(ours: pd.DataFrame, theirs: pd.DataFrame, higher: bool) -> pd.Series:
    """Seed: by how much our score is better; without the seeds that one of the two lacks."""
    scores, base = ours.set_index("seed").score, theirs.set_index("seed").score
    return ((scores - base) * (1 if higher else -1)).dropna()


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
        numbers = ["score", "train_loss", "steps", "seconds", "tuned_by", "increases"]
        numbers += ["signal_noise"]
        rows = [
            {"of": name, "part": part, **curves, **run}
            for name, entry in self.entries.items()
            for part in ("runs", "trials", "reach", "seeds", "shared")
            for run in entry.get(part) or ()
        ]
        columns = ["of", "part", "lr", "seed", "diverged", *numbers, *curves]
        kinds = {"diverged": bool, **dict.fromkeys(numbers, float)}
        frame = pd.DataFrame(rows, columns=columns).astype(kinds)
        windows = [[window for _, window in run] for run in frame.windows]
        return frame.assign(mean_window=[np.mean(each or math.nan) for each in windows])

    @cached_property
    def _groups(self) -> dict[Any, pd.DataFrame]:
        return dict(list(self.all_runs.groupby(["of", "part"])))

    def runs(self, name: str, *parts: str) -> pd.DataFrame:
        """Those of a contender or label; of some parts, or of an experiment's one."""
        of = [(name, part) for part in parts or ("runs",)]
        found = [self._groups[key] for key in of if key in self._groups]
        return found[0] if len(found) == 1 else pd.concat(found or [self.all_runs[:0]])

    @property
    def distinct_runs(self) -> pd.DataFrame:
        """Each run once: a trial may also be one of the shared rate."""
        return self.all_runs.drop_duplicates(["of", "lr", "seed"], keep="last")

    def better(self, label: str) -> stats.Estimate | None:
        """What a label's score is better by than the first one's, over their common seeds.

        In points where scores are shown in percent; else in the metric's unit.
        """
        found = gains(self.runs(label), self.runs(next(iter(self.entries))), self.higher)
        return stats.estimate(found * (100 if self.metric in SHARES else 1))


class Measured(Result):
    """A comparison, run or planned: a planned one has no contenders."""

    def __init__(self, kind: str, name: str, data: Mapping[str, Any]) -> None:
        super().__init__(kind, name, data)
        self.plan: Mapping[str, Any] = data["plan"]
        self.names = list(dict.fromkeys([*(self.plan.get("contenders") or ()), *self.entries]))
        self.unit = "points" if self.metric in SHARES else "% of AdamW's"
        self.chosen_on = bool(self.plan.get("chosen_on"))  # it took part in choosing the preset

    @cached_property
    def all_runs(self) -> pd.DataFrame:
        """Each run also with how soon it was there; infinity: never.

        `target_steps` and `target_seconds` to the plan's target; `loss_share` of the budget to
        AdamW's final training loss with the same seed, NaN where that is not known.
        """
        frame, budget = super().all_runs, self.data["steps"]
        adamw = frame[(frame["of"] == ADAMW) & (frame.part == "seeds")]
        marks = frame.seed.map(dict(zip(adamw.seed, adamw.train_loss, strict=True)))
        to_target = [
            stats.steps_to_target(scores, self.plan["target"], self.higher)
            for scores in frame.scores
        ]
        to_loss = [
            stats.steps_to_loss(losses, mark, budget, final)
            for losses, mark, final in zip(frame.losses, marks, frame.train_loss, strict=True)
        ]
        steps = pd.Series(to_target, dtype=float).mask(frame.diverged, math.inf)
        shares = pd.Series(to_loss, dtype=float) / (budget or 1)
        return frame.assign(
            target_steps=steps,
            target_seconds=steps / frame.steps * frame.seconds,
            loss_share=shares.mask(frame.diverged, math.inf).where(marks.notna()),
        )

    def entry(self, name: str, key: str) -> Any:
        """What the file has of a contender; None: nothing."""
        return (self.entries.get(name) or {}).get(key)

    def label(self, name: str) -> str:
        """The contender's title, as in tables."""
        known = CONTENDERS[name].title if name in CONTENDERS else name
        return str(self.entry(name, "title") or known)

    def outdated(self, name: str) -> bool:
        """Whether the contender has other settings of its own today."""
        then = self.entry(name, "defaults")
        return bool(then) and name in CONTENDERS and then != dict(CONTENDERS[name].defaults)

    def whole(self, name: str, part: str = "seeds") -> bool:
        """Whether all `seeds`, `trials` or rates of `reach` of it and of AdamW were run."""
        both = {each: self.runs(each, part) for each in (name, ADAMW)}
        if part == "seeds":
            return all(set(self.plan["seeds"]) <= set(runs.seed) for runs in both.values())
        if part == "trials":
            planned = self.plan["tuning"].get("trials", 0)
            return self.complete or all(len(runs) >= planned for runs in both.values())
        rates = self.plan.get("reach") or {}
        return all(len(runs) == len(rates.get(each, ())) for each, runs in both.items())

    def failed(self, name: str) -> bool:
        """Whether every learning rate of the contender's search diverged."""
        trials = self.runs(name, "trials").diverged
        return self.whole(name, "trials") and len(trials) > 0 and bool(trials.all())

    def difference(self, name: str, part: str = "seeds") -> stats.Estimate | None:
        """To AdamW, seed by seed, positive where the contender is better; None without pairs.

        In points where scores are shown in percent; else in percent of AdamW's score.
        """
        theirs = self.runs(ADAMW, part)
        found = 100 * gains(self.runs(name, part), theirs, self.higher)
        if self.metric not in SHARES:
            base = theirs.set_index("seed").score.abs()
            found = (found / base[base > 0]).dropna()
        return stats.estimate(found)

    def diverged(self, name: str) -> int:
        """How many seeds the contender diverged with and AdamW did not."""
        ours, theirs = (self.runs(each, "seeds") for each in (name, ADAMW))
        return int((ours.diverged & ours.seed.isin(theirs.seed[~theirs.diverged])).sum())

    def measured(self, name: str) -> bool:
        """Whether all seeds were run, and leave something to compare."""
        return self.whole(name) and (self.difference(name) is not None or self.diverged(name) > 0)

    @property
    def learned(self) -> bool:
        """Whether AdamW reached the plan's target with a seed, or is yet to be run."""
        steps = self.runs(ADAMW, "seeds").target_steps
        return steps.empty or bool(np.isfinite(steps).any())

    def loss_shares(self, name: str) -> pd.Series:
        """For each seed the share of the budget to AdamW's final training loss."""
        return self.runs(name, "seeds").loss_share.dropna()

    @property
    def mark(self) -> float:
        """The score with which a learning rate works: AdamW's best trial less the tolerance."""
        scores, tolerance = self.runs(ADAMW, "trials").score, self.plan.get("tolerance")
        return scores.max() - tolerance if self.higher else scores.min() + tolerance

    def tried(self, name: str) -> pd.DataFrame:
        """The trials, and the runs beyond them that none was chosen from."""
        return self.runs(name, "trials", "reach")

    def working(self, name: str) -> stats.WorkingRange | None:
        """The learning rates that work, of the trials and of `reach`; None: not measured."""
        if math.isnan(self.mark):
            return None
        return stats.working_range(self.tried(name)[["lr", "score"]], self.mark, self.higher)

    def at_the_edge(self, name: str) -> bool:
        """Whether the best learning rate is the lowest or the highest that was tried."""
        rates = self.runs(name, "trials").lr
        return rates.nunique() > 1 and self.entry(name, "best_lr") in (rates.min(), rates.max())

    def better_beyond(self, name: str) -> float | None:
        """The best of `reach`, where it is better than what the search chose; None: it is not."""
        found = self.tried(name).dropna(subset="tuned_by")
        lower = not self.higher or str(self.plan["tuning"].get("by", "")).endswith("loss")
        best = found.sort_values("tuned_by", ascending=lower, kind="stable").lr[:1]
        return next(iter(best[~best.isin(self.runs(name, "trials").lr)]), None)

    def equal(self, name: str) -> str:
        """Goal (a)."""
        if self.failed(name) or (self.whole(name) and self.diverged(name)):
            return NOT_MET
        found = self.difference(name) if self.whole(name) else None
        return NOT_MEASURED if found is None else MET if found.mean >= 0 else NOT_MET

    def side(self, name: str) -> str:
        """Where the interval lies; nothing where that is not known."""
        found = self.difference(name) if self.whole(name) else None
        return found.side if found and found.interval else ""

    def sooner(self, name: str) -> str:
        """Goal (c), as a share of the budget."""
        return self._passes(name, 1.0)

    def faster(self, name: str) -> str:
        """Goal (c) by both first passages, which noise makes early for both."""
        return self._passes(name, self.loss_shares(ADAMW).median())

    def _passes(self, name: str, share: float) -> str:
        """Whether the contender has AdamW's final loss in `FASTER` of a share of the budget."""
        if self.failed(name):
            return NOT_MET
        shares = self.loss_shares(name)
        if not self.whole(name) or shares.empty or not math.isfinite(share):
            return NOT_MEASURED
        return MET if shares.median() <= FASTER * share else NOT_MET

    def robust(self, name: str) -> str:
        """Goal (d)."""
        ours, theirs = self.working(name), self.working(ADAMW)
        if not (ours and theirs and self.whole(name, "trials") and self.whole(name, "reach")):
            return NOT_MEASURED
        wide = ours.decades >= theirs.decades - 1e-9
        if ours.low is None or not (wide or ours.at_least):
            return NOT_MET
        # what was tried may have ended before the range did
        return NOT_MEASURED if theirs.at_least or not wide else MET


def mean_lead(workloads: Sequence[Measured], name: str) -> tuple[str, stats.Estimate | None, int]:
    """Goal (b): the verdict, the mean over those that were measured, and how many these are."""
    found = [w.difference(name) for w in workloads if w.measured(name)]
    values = [each for each in found if each is not None]
    mean = stats.equal_weights(values)
    verdict = NOT_MEASURED
    if any(w.failed(name) or (w.whole(name) and w.diverged(name)) for w in workloads):
        verdict = NOT_MET
    elif mean and mean.interval and len(values) == len(workloads):
        verdict = MET if mean.interval[0] > 0 else NOT_MET
    return verdict, mean, len(values)
