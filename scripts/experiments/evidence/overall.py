"""The verdict: the goals, for the preset and for the faithful default, against AdamW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.evidence.measures import ADAMW, Comparison
from experiments.evidence.words import (
    MET,
    NOT_MEASURED,
    NOT_MET,
    NOT_RUN,
    against_zero,
    difference,
    every,
    missed,
    table,
    verdict,
)
from experiments.stats import Estimate, Range, equal_weights
from experiments.table import SHARES, spread

JUDGED = {"dwmgrad-finetune": "DWMGrad, preset", "dwmgrad-decrease": "DWMGrad, faithful default"}
FASTER = 0.9
"""The share of AdamW's steps to reach its final training loss in."""


@dataclass(frozen=True)
class Workload:
    """A comparison that was planned; `comparison` is None if it was not run."""

    title: str
    comparison: Comparison | None
    planned_as_chosen_on: bool = False

    @property
    def chosen_on(self) -> bool:
        """Whether it took part in choosing the preset."""
        if self.comparison is None:
            return self.planned_as_chosen_on
        return bool(self.comparison.plan.get("chosen_on"))

    @property
    def learned(self) -> bool:
        """Whether AdamW reached the plan's target with a seed, or is yet to be run."""
        steps = self.comparison.target_steps(ADAMW) if self.comparison else []
        return not steps or any(step is not None for step in steps)

    def failed(self, name: str) -> bool:
        """Whether every learning rate of the contender's search diverged."""
        trials = self.comparison.runs(name, "trials") if self.comparison else []
        return self.whole(name, "trials") and bool(trials) and all(t["diverged"] for t in trials)

    def difference(self, name: str) -> Estimate | None:
        """To AdamW, as far as it was measured."""
        return self.comparison.difference(name) if self.comparison else None

    def whole(self, name: str, part: str = "seeds") -> bool:
        """Whether all `seeds` or `trials` of the contender and of AdamW were run."""
        return self.comparison is not None and self.comparison.complete(name, part)

    def diverged(self, name: str) -> int:
        """Seeds with which the contender diverged and AdamW did not."""
        return self.comparison.diverged_alone(name) if self.comparison else 0

    def measured(self, name: str) -> bool:
        """Whether all seeds were run, and leave something to compare."""
        return self.whole(name) and (self.difference(name) is not None or self.diverged(name) > 0)

    def equal(self, name: str) -> str:
        """Goal (a)."""
        found = self.difference(name)
        if self.failed(name) or (self.whole(name) and self.diverged(name)):
            return NOT_MET
        return verdict(found.mean >= 0 if found and self.measured(name) else None)

    def told(self, name: str) -> str:
        """On which side of 0 the interval lies; nothing where it includes 0 or is not known."""
        found = self.difference(name)
        return against_zero(found) if found and found.interval and self.measured(name) else ""

    def sooner(self, name: str) -> str:
        """Goal (c), as a share of the budget."""
        return self._passes(name, 1.0)

    def faster(self, name: str) -> str:
        """Goal (c) by both first passages, which noise makes early for both."""
        return self._passes(name, self.comparison.loss_share(ADAMW) if self.comparison else None)

    def _passes(self, name: str, share: float | None) -> str:
        """Whether the contender has AdamW's final loss in `FASTER` of a share of the budget."""
        if self.failed(name):
            return NOT_MET
        if not self.comparison or not self.whole(name) or not self.comparison.loss_shares(name):
            return NOT_MEASURED
        ours = self.comparison.loss_share(name)
        return verdict(None if share is None else ours is not None and ours <= FASTER * share)

    def robust(self, name: str) -> str:
        """Goal (d)."""
        if not self.comparison or not (self.whole(name, "trials") and self.whole(name, "reach")):
            return NOT_MEASURED
        ours, theirs = self.comparison.working(name), self.comparison.working(ADAMW)
        if ours is None or theirs is None:
            return NOT_MEASURED
        if ours.low is None:
            return NOT_MET
        wide = ours.decades >= theirs.decades - 1e-9
        if not wide and not ours.at_least:
            return NOT_MET
        if theirs.at_least or not wide:
            return NOT_MEASURED  # what was tried ended before the range did
        return MET


def ahead(workloads: Sequence[Workload], name: str) -> tuple[str, Estimate | None, int]:
    """Goal (b): the verdict, the mean over those that were measured, and how many these are."""
    found = [w.difference(name) for w in workloads if w.measured(name)]
    values = [each for each in found if each is not None]
    mean = equal_weights(values)
    if any(w.failed(name) or (w.whole(name) and w.diverged(name)) for w in workloads):
        return NOT_MET, mean, len(values)
    if not mean or not mean.interval or len(values) < len(workloads):
        return NOT_MEASURED, mean, len(values)
    return verdict(mean.interval[0] > 0), mean, len(values)


def goals(workloads: Sequence[Workload]) -> str:
    """A row for each goal."""
    confirming = [w for w in workloads if not w.chosen_on]
    learned = [w for w in workloads if w.learned]
    chosen = len(confirming) < len(workloads)
    rows = [
        ["(a) at least AdamW's equal on every workload",
         *(_every(workloads, [w.equal(name) for w in workloads]) for name in JUDGED)],
        ["what can be told of (a): the interval above 0; below 0",
         *(_told(workloads, name) for name in JUDGED)],
        ["(b) ahead of AdamW in the mean over all workloads",
         *(_ahead(workloads, name) for name in JUDGED)],
        *([["(b) in the mean over those that had no part in choosing the preset",
            *(_ahead(confirming, name) for name in JUDGED)]] if chosen else []),
        *([["(b) in the mean over those whose target AdamW reached with a seed",
            *(_ahead(learned, name) for name in JUDGED)]] if len(learned) < len(workloads) else []),
        [f"(c) AdamW's final training loss in at most {FASTER:g} of the budget, on every workload "
         f"(AdamW itself: {[w.sooner(ADAMW) for w in workloads].count(MET)} of {len(workloads)})",
         *(_every(workloads, [w.sooner(name) for w in workloads]) for name in JUDGED)],
        [f"(c) in at most {FASTER:g} of the steps in which AdamW first has it, on every workload",
         *(_every(workloads, [w.faster(name) for w in workloads]) for name in JUDGED)],
        ["(d) at least as wide a range of learning rates works, on every workload",
         *(_every(workloads, [w.robust(name) for w in workloads]) for name in JUDGED)],
    ]  # fmt: skip
    return table(["goal, against AdamW", *JUDGED.values()], rows)


def _every(workloads: Sequence[Workload], verdicts: list[str]) -> str:
    counts = [f"{verdicts.count(MET)} of {len(workloads)} met"]
    if NOT_MEASURED in verdicts:
        counts.append(f"{verdicts.count(NOT_MEASURED)} not measured")
    return f"**{every(verdicts)}** ({', '.join(counts)})"


def _told(workloads: Sequence[Workload], name: str) -> str:
    sides = [w.told(name) for w in workloads]
    above, below = (sides.count(f"interval {side} 0") for side in ("above", "below"))
    return f"ahead on {above}, behind on {below} of {len(workloads)}"


def _ahead(workloads: Sequence[Workload], name: str) -> str:
    found, mean, count = ahead(workloads, name)
    parts = [difference(mean, "points")] if mean else []
    if count < len(workloads):
        parts.append(f"{count} of {len(workloads)} workloads")
    diverged = sum(w.diverged(name) for w in workloads)
    if diverged:
        parts.append(f"{diverged} diverged")
    return f"**{found}**" + (f" ({'; '.join(parts)})" if parts else "")


def per_workload(workloads: Sequence[Workload], name: str) -> str:
    """A row for each workload, and the overall ones."""
    heads = ["workload", "better than AdamW by [95 %]", "(a) equal or better",
             f"(c) share of the steps to AdamW's loss (at most {FASTER:g} of AdamW's own)",
             "(d) decades of lr that work (AdamW's)"]  # fmt: skip
    rows = [_row(each, name) for each in workloads]
    chosen = [w for w in workloads if w.chosen_on]
    for title, some in (
        ("all", workloads),
        ("confirming alone", [w for w in workloads if not w.chosen_on] if chosen else []),
    ):
        if some:
            rows.append(
                [f"**{title}**", f"(b) {_ahead(some, name)}"]
                + [f"**{every([judge(w) for w in some])}**" for judge in _judges(name)]
            )
    return table(heads, rows)


def _judges(name: str) -> list[Callable[[Workload], str]]:
    return [lambda w: w.equal(name), lambda w: w.faster(name), lambda w: w.robust(name)]


def _row(workload: Workload, name: str) -> list[str]:
    title = workload.title + (" (chosen on)" if workload.chosen_on else "")
    comparison = workload.comparison
    if comparison is None or not comparison.ran(name):
        return [title, NOT_RUN, *[NOT_MEASURED] * 3]
    found = workload.difference(name)
    notes = [difference(found, comparison.unit)]
    if found:
        notes.append(against_zero(found))
    diverged = workload.diverged(name)
    if diverged:
        notes.append(f"{diverged} diverged")
    if not workload.whole(name):
        notes.append("not all seeds were run")
    if not workload.learned:
        notes.append("AdamW missed the target with every seed")
    return [
        title,
        "; ".join(notes),
        workload.equal(name),
        f"{workload.faster(name)}: {_share(comparison, name)} ({_share(comparison, ADAMW)})",
        f"{workload.robust(name)}: {_decades(comparison.working(name))} "
        f"({_decades(comparison.working(ADAMW))})",
    ]


def _share(comparison: Comparison, name: str) -> str:
    shares, median = comparison.loss_shares(name), comparison.loss_share(name)
    if not shares:
        return "-"
    parts = ["never" if median is None else f"{median:.2f}", missed(shares)]
    return ", ".join(filter(None, parts))


def _decades(found: Range | None) -> str:
    if found is None:
        return "-"
    if found.low is None:
        return "none works"
    return f"{'at least ' if found.at_least else ''}{found.decades:.2f}"


def scores(workloads: Sequence[Workload]) -> str:
    """The table that comes first: the scores side by side."""
    heads = ["workload", "AdamW", *JUDGED.values(), "better than AdamW by [95 %]: preset",
             "faithful default"]  # fmt: skip
    rows = []
    for each in workloads:
        cells = [_score(each.comparison, name) for name in (ADAMW, *JUDGED)]
        unit = each.comparison.unit if each.comparison else ""
        better = [
            difference(each.difference(name), unit)
            + ("" if each.measured(name) or not each.difference(name) else ", incomplete")
            for name in JUDGED
        ]
        title = each.title + _metric(each.comparison) + (", chosen on" if each.chosen_on else "")
        rows.append([title, *cells, *better])
    confirming = [each for each in workloads if not each.chosen_on]
    learned = [each for each in confirming if each.learned]
    for title, some in (
        ("all", workloads),
        ("those not chosen on", confirming),
        ("these, where AdamW reached the target", learned),
    ):
        means = [_ahead(some, name) for name in JUDGED]
        rows.append([f"**mean of {title}; ahead of AdamW?**", "-", "-", "-", *means])
    return table(heads, rows)


def _metric(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    if comparison.metric in SHARES:
        return f" ({comparison.metric}, %)"
    return f" ({comparison.metric}, {'higher' if comparison.higher else 'lower'} is better)"


def _score(comparison: Comparison | None, name: str) -> str:
    runs = comparison.runs(name, "seeds") if comparison else []
    if comparison is None or not runs:
        return NOT_RUN
    scores = [run["score"] for run in runs if run["score"] is not None]
    diverged = sum(run["diverged"] for run in runs)
    return spread(scores, comparison.metric) + (f", {diverged} diverged" if diverged else "")
