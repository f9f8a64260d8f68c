"""What follows from a comparison: what a wrong learning rate costs, who is ahead, and of whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from experiments import stats
from experiments.compact import is_swept
from experiments.comparison import WITHOUT
from experiments.contenders import CONTENDERS
from experiments.evidence.results import Result
from experiments.table import SHARES, known, lead, score_head, several, spread, table

ADAMW = "adamw"
FINETUNE = "dwmgrad-finetune"
CONTROL = "adamw-control"
DEAF = "deaf"
"""In the studies of a deaf window, beside a label `finetune`."""
WORKS = 3.0
"""A rate works that is at most so many points worse than AdamW's best."""


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
                e["title"] + older(name, e) for name, e in zip(frame["of"], entries, strict=True)
            ],
            rateless=[bool(entry["rateless"]) for entry in entries],
            points=points(frame.score, self.data),
        )

    @property
    def swept(self) -> bool:
        """Whether its first stage was run to its end, whatever of the second is missing."""
        return self.complete or is_swept(self.entries, self.plan)

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


def older(name: str, entry: Mapping[str, Any]) -> str:
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


def shown(compared: Compared, name: str) -> str:
    """A contender's score at its best rate, with the rate.

    Where it has none that stands beside AdamW's: why, or what its first stage says.
    """
    runs = compared.at_best(name)
    if runs.empty:
        first = compared.rates(name)
        if first.empty:
            return "not run"
        if first.diverged.groupby(first.lr).any().all():
            return "every rate diverged"
        seeds = several(first.seed.nunique(), "seed")
        return f"{compared.ahead(name):+.2f}, of the {seeds} that chose the rate"
    rate = "" if runs.rateless.iloc[0] else f" at {runs.lr.iloc[0]:.2g}"
    lost = f", {runs.diverged.sum()} diverged" if runs.diverged.any() else ""
    return f"{spread(runs.score, compared.metric)}{rate}{lost}"


def heads(some: Sequence[Compared], ours: Mapping[str, str]) -> str:
    """A row a workload: AdamW and `ours`, name: title, each at its best rate; the difference.

    Then the mean difference in deviations, over the workloads that have a second stage and had no
    part in choosing a preset. The seeds are those of AdamW's score.
    """
    rows = []
    for each in some:
        unit = score_head(each.metric, each.higher).removesuffix(" (higher is better)")
        count = len(each.at_best(ADAMW))
        stage = "new" if each.renewed else "those that chose the rate"
        row = {
            "workload": f"{each.title} ({unit})",
            "seeds": f"{count}, {stage}" if count else "-",
            "AdamW": shown(each, ADAMW),
        }
        for name, title in ours.items():
            difference = each.difference(name)
            row[title] = shown(each, name) + (f" ({lead(difference)})" if difference else "")
            row[title] += ", chosen on" * (name in each.chosen_on and bool(len(each.rates(name))))
            row[title] += older(name, each.entries.get(name, {})) * len(each.rates(name).head(1))
            row[title] += ", not all on AdamW's machine" * each.apart(name)
        rows.append(row)
    if len(some) > 1:
        last = dict.fromkeys(rows[0], "")
        last["workload"] = "**mean of those not chosen on, in deviations of AdamW's seeds**"
        for name, title in ours.items():
            others = [each for each in some if name not in each.chosen_on]
            found = [each.deviations(each.difference(name)) for each in others]
            known = [each for each in found if each is not None]
            of = f" ({len(known)} of {len(found)})" if len(known) < len(found) else ""
            last[title] = lead(stats.equal_weights(known)) + of
        rows.append(last)
    return table(rows)


def verdicts(some: Sequence[Compared], ours: Mapping[str, str], margin: float | None = None) -> str:
    """A row a workload with a second stage: whether `ours` are at most `margin` points worse.

    Welch's test, one-sided, of 5 %; Holm's correction over an optimizer's workloads. Without a
    margin: whether they differ from AdamW at all, two-sided.
    """
    some = [each for each in some if each.renewed]
    rows = [{"workload": each.title} for each in some]
    for name, title in ours.items():
        found = [each.difference(name) for each in some]
        if margin is None:
            chances = [each.chance_equal() if each else None for each in found]
        else:
            chances = [each.chance_below(-margin) if each else None for each in found]
        for row, p in zip(rows, stats.holm(chances), strict=True):
            told = "not measured" if p is None else "shown" if p <= 0.05 else "not shown"
            row[title] = told if p is None else f"{told} (p = {p:.2g})"
    return table(rows)


def rates_table(compared: Compared) -> str:
    """A row an optimizer: its mean score at each rate and over all, and how many decades work.

    A run that diverged counts as the worst that did not.
    """
    runs = compared.rates()
    if runs.empty:
        return "no results"
    rates = sorted(runs.lr[~runs.rateless].unique())
    factor = 100 if compared.metric in SHARES else 1
    worst = runs.score.min() if compared.higher else runs.score.max()
    rows = []
    for name, own in runs.groupby("of", sort=False):
        means, best = compared.means(str(name)), compared.best_beside(str(name))
        free = bool(own.rateless.iloc[0])
        scores = factor * own.score.fillna(worst).groupby(own.lr).mean()
        lost = own.score.isna().groupby(own.lr).any()
        told = {lr: f"{scores[lr]:.2f}" + ", diverged" * int(lost[lr]) for lr in scores.index}
        cells = {f"{lr:.2g}": told.get(WITHOUT if free else lr, "-") for lr in rates}
        works = int((means >= best - WORKS).sum())
        decades = "all" if free and works else f"{works / 2:g}"
        rows.append(
            {
                "optimizer": own.title.iloc[0],
                **cells,
                "mean": f"{scores.mean():.2f}",
                "decades that work": "-" if np.isnan(best) else decades,
                "seeds": f"{own.seed.nunique()}",
                **places(compared, own),
            }
        )
    return table(rows)


def places(compared: Compared, runs: pd.DataFrame) -> dict[str, str]:
    """A cell with what these runs were computed on, where a comparison's runs differ in that."""
    if compared.all_runs.on.nunique() < 2:
        return {}
    counts = runs.on.dropna().value_counts()
    return {
        "on": ", ".join(str(n) if len(counts) == 1 else f"{n} ({c})" for n, c in counts.items())
    }


def final_table(compared: Compared) -> str:
    """A row an optimizer of the second stage; nothing without one."""
    rows, head = [], score_head(compared.metric, compared.higher)
    for name in compared.entries:
        runs = compared.runs(name, "final")
        if runs.empty:
            continue
        difference = None if name == ADAMW else compared.difference(name)
        rows.append(
            {
                "optimizer": runs.title.iloc[0],
                "learning rate": "none" if runs.rateless.iloc[0] else f"{runs.lr.iloc[0]:.2g}",
                head: spread(runs.score, compared.metric),
                "points better than AdamW [95 %]": lead(difference),
                "training loss": spread(runs.train_loss),
                "new seeds": f"{len(runs)}",
                "diverged": f"{runs.diverged.sum()}",
                **places(compared, runs),
            }
        )
    return table(rows)


def overall(some: Sequence[Compared]) -> str:
    """A row an optimizer: what it loses to AdamW tuned, at one rate for all workloads.

    Only those count whose first stage is whole. Optimizers that are not in all of them have a row
    of their own ones.
    """
    some = [each for each in some if each.swept and ADAMW in each.entries]
    titles = {name: entry["title"] for each in some for name, entry in each.entries.items()}
    rows = []
    for name, title in titles.items():
        its = [each for each in some if len(each.rates(name))]
        if not its:
            continue
        free = bool(its[0].rates(name).rateless.iloc[0])
        regrets = pd.DataFrame({w.title: w.best_beside(name) - w.means(name) for w in its})
        shared = regrets.dropna().mean(axis=1)
        at_one = None if shared.empty else regrets.loc[shared.idxmin()]
        rate = "none is in all plans" if at_one is None else f"{shared.idxmin():.2g}"
        works = (regrets <= WORKS).sum() / 2
        everywhere = f"works on {int(2 * works.sum())} of {len(works)}"
        rows.append(
            {
                "optimizer": title
                + next(filter(None, (older(name, w.entries[name]) for w in its)), ""),
                "workloads": f"{len(its)} of {len(some)}",
                "one learning rate for all": "none" if free else rate,
                "regret, mean": "-" if at_one is None else f"{at_one.mean():.1f}",
                "regret, worst": "-"
                if at_one is None
                else f"{at_one.max():.1f} ({at_one.idxmax()})",
                "decades that work, mean": everywhere if free else f"{works.mean():.1f}",
                "least": "-" if free else f"{works.min():g}",
            }
        )
    return table(rows)


def rateless(
    some: Sequence[Compared], ahead: Callable[[Compared, str], float] = Compared.ahead
) -> str:
    """A row a workload: the regret of all that take no learning rate; then mean and worst.

    Regret is less `ahead`, of a workload and a contender; without any, there is no row or column.
    """
    titles = {
        name: entry["title"]
        for each in some
        for name, entry in each.entries.items()
        if entry["rateless"]
    }
    regrets = -pd.DataFrame({name: [ahead(each, name) for each in some] for name in titles})
    regrets = regrets.dropna(how="all").dropna(how="all", axis="columns")
    rows = []
    for place, found in regrets.iterrows():
        each = some[int(str(place))]
        cells = {
            titles[name]: known(value, ".1f") + ", chosen on" * (name in each.chosen_on)
            for name, value in found.items()
        }
        rows.append({"workload": each.title, **cells})
    for name, summary in (("mean", regrets.mean()), ("worst", regrets.max())):
        cells = {titles[n]: f"{summary[n]:.1f} ({regrets[n].count()})" for n in regrets}
        rows.append({"workload": f"**{name} (workloads)**", **cells})
    return table(rows) if len(regrets) else ""


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


def controls(comparisons: Sequence[Compared], results: Sequence[Result]) -> str:
    """A row a workload: finetune's lead over each control, and p corrected over the workloads.

    Then the means in points, and in standard deviations of AdamW's seeds over those workloads that
    had no part in choosing finetune. Nothing without a control. A workload is marked where finetune
    and AdamW with its betas have not run on one machine.
    """
    gained = gains(comparisons, results)
    if not any(map(any, gained.values())):
        return ""
    rows = []
    for each in comparisons:
        apart = len(each.runs(CONTROL, "final")) and each.apart(FINETUNE, CONTROL)
        rows.append({"workload": each.title + " (two machines)" * bool(apart)})
    last: list[dict[str, str]] = [
        {"workload": "**mean (workloads)**"},
        {"workload": "**in deviations, not chosen on**"},
    ]
    for name, own in gained.items():
        chances = stats.holm([gain.chance_equal() if gain else None for gain in own])
        for row, gain, p in zip(rows, own, chances, strict=True):
            row[name] = lead(gain) if p is None else f"{lead(gain)}, p = {p:.2g}"
        pairs = zip(comparisons, own, strict=True)
        in_deviations = [w.deviations(gain) for w, gain in pairs if FINETUNE not in w.chosen_on]
        for row, found in zip(last, (own, in_deviations), strict=True):
            known = [each for each in found if each is not None]
            row[name] = f"{lead(stats.equal_weights(known))} ({len(known)})"
    return table([*rows, *last])
