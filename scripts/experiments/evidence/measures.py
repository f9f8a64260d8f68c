"""A comparison's measures: each contender against AdamW, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.contenders import CONTENDERS
from experiments.evidence.files import Result
from experiments.stats import (
    Estimate,
    Range,
    estimate,
    median_of_all,
    steps_to_loss,
    steps_to_target,
    working_range,
)
from experiments.table import SHARES

ADAMW = "adamw"
Runs = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """A comparison's file, with what follows from it."""

    result: Result

    @property
    def plan(self) -> Mapping[str, Any]:
        """The values of its configuration."""
        return self.result.data["plan"]

    @property
    def metric(self) -> str:
        return self.result.data["metric"]

    @property
    def higher(self) -> bool:
        """Whether a higher score is the better one."""
        return self.result.data["higher_is_better"]

    @property
    def budget(self) -> int:
        """The steps of a run."""
        return self.result.data["steps"]

    @property
    def unit(self) -> str:
        """Of differences."""
        return "points" if self.metric in SHARES else "% of AdamW's"

    @property
    def names(self) -> list[str]:
        """The contenders, planned or run."""
        planned = [str(name) for name in self.plan.get("contenders") or ()]
        return list(dict.fromkeys([*planned, *self.result.data["contenders"]]))

    def title(self, name: str) -> str:
        """The contender's, as in tables."""
        given = self._entry(name).get("title")
        return str(given or (CONTENDERS[name].title if name in CONTENDERS else name))

    def error(self, name: str) -> str | None:
        """What stopped the contender's runs."""
        return self._entry(name).get("error")

    def best_lr(self, name: str) -> float | None:
        return self._entry(name).get("best_lr")

    def defaults(self, name: str) -> Mapping[str, Any]:
        """The settings by which the contender was what it was."""
        return self._entry(name).get("defaults") or {}

    def outdated(self, name: str) -> bool:
        """Whether the contender has other settings of its own today."""
        return (
            name in CONTENDERS
            and self.ran(name)
            and (dict(self.defaults(name)) not in ({}, dict(CONTENDERS[name].defaults)))
        )

    def runs(self, name: str, part: str) -> Runs:
        """`trials`, `reach`, `seeds` or `shared`."""
        return self._entry(name).get(part) or []

    def ran(self, name: str) -> bool:
        """Whether anything was run of the contender."""
        return any(self.runs(name, part) for part in ("trials", "seeds", "shared"))

    def seeds(self, part: str) -> list[int]:
        """What the plan has for `seeds` or `shared`."""
        found = self.plan["seeds"] if part == "seeds" else (self.plan.get("shared") or {})["seeds"]
        return list(found)

    def complete(self, name: str, part: str = "seeds") -> bool:
        """Whether the contender's runs and AdamW's are all there."""
        if part == "trials":
            planned = self.plan["tuning"].get("trials", 0)
            enough = all(len(self.runs(each, part)) >= planned for each in (name, ADAMW))
            return enough or self.result.complete
        if part == "reach":
            rates = self.plan.get("reach") or {}
            return all(len(self.runs(n, part)) == len(rates.get(n, ())) for n in (name, ADAMW))
        wanted = set(self.seeds(part))
        return all(wanted <= {run["seed"] for run in self.runs(n, part)} for n in (name, ADAMW))

    def difference(self, name: str, part: str = "seeds") -> Estimate | None:
        """To AdamW, seed by seed, positive where the contender is better; None without pairs.

        In points where scores are shown in percent; else in percent of AdamW's score.
        """
        theirs = {run["seed"]: run["score"] for run in self.runs(ADAMW, part)}
        sign, values = 1 if self.higher else -1, []
        for run in self.runs(name, part):
            ours, other = run["score"], theirs.get(run["seed"])
            if ours is not None and other is not None:
                scale = 1 if self.metric in SHARES else abs(other)
                if scale:
                    values.append(100 * sign * (ours - other) / scale)
        return estimate(values)

    def diverged_alone(self, name: str) -> int:
        """Seeds with which the contender diverged and AdamW did not."""
        stood = {run["seed"] for run in self.runs(ADAMW, "seeds") if not run["diverged"]}
        return sum(run["diverged"] and run["seed"] in stood for run in self.runs(name, "seeds"))

    def target_steps(self, name: str, part: str = "seeds") -> list[int | None]:
        """For each seed the steps to the plan's target."""
        return [
            None
            if run["diverged"]
            else steps_to_target(run.get("scores") or [], self.plan["target"], self.higher)
            for run in self.runs(name, part)
        ]

    def target_seconds(self, name: str, part: str = "seeds") -> list[float | None]:
        """For each seed the seconds to the plan's target."""
        runs = self.runs(name, part)
        return [
            None if steps is None else steps / run["steps"] * run["seconds"]
            for run, steps in zip(runs, self.target_steps(name, part), strict=True)
        ]

    def loss_shares(self, name: str) -> list[float | None]:
        """For each seed the share of the budget to AdamW's final training loss."""
        marks = {run["seed"]: run["train_loss"] for run in self.runs(ADAMW, "seeds")}
        found: list[float | None] = []
        for run in self.runs(name, "seeds"):
            mark = marks.get(run["seed"])
            if mark is not None:
                final = None if run["diverged"] else run["train_loss"]
                steps = steps_to_loss(run.get("losses") or [], mark, self.budget, final)
                found.append(None if run["diverged"] or steps is None else steps / self.budget)
        return found

    def loss_share(self, name: str) -> float | None:
        """The median of `loss_shares`; None: never reached, or not measured."""
        return median_of_all(self.loss_shares(name))

    @property
    def mark(self) -> float | None:
        """The score with which a learning rate works: AdamW's best trial less the tolerance."""
        scores = [run["score"] for run in self.runs(ADAMW, "trials") if run["score"] is not None]
        if not scores:
            return None
        best = max(scores) if self.higher else min(scores)
        return best - (1 if self.higher else -1) * self.plan["tolerance"]

    def working(self, name: str) -> Range | None:
        """The learning rates that work, of the trials and of `reach`; None: not measured."""
        if self.mark is None:
            return None
        trials = [(run["lr"], run["score"]) for run in self.tried(name)]
        return working_range(trials, self.mark, self.higher)

    def tried(self, name: str) -> Runs:
        """The trials, and the runs beyond them that none was chosen from."""
        return [*self.runs(name, "trials"), *self.runs(name, "reach")]

    def at_the_edge(self, name: str) -> bool:
        """Whether the best learning rate is the lowest or the highest that was tried."""
        rates, best = {run["lr"] for run in self.runs(name, "trials")}, self.best_lr(name)
        return best is not None and len(rates) > 1 and best in (min(rates), max(rates))

    def better_beyond(self, name: str) -> float | None:
        """The best of `reach`, where it is better than what the search chose; None: it is not."""
        runs = [run for run in self.tried(name) if run.get("tuned_by") is not None]
        lower = not self.higher or str(self.plan["tuning"].get("by", "")).endswith("loss")
        runs.sort(key=lambda run: run["tuned_by"], reverse=not lower)
        chosen = {run["lr"] for run in self.runs(name, "trials")}
        return runs[0]["lr"] if runs and runs[0]["lr"] not in chosen else None

    def _entry(self, name: str) -> Mapping[str, Any]:
        return self.result.data["contenders"].get(name) or {}
