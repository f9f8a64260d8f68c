"""The tables of comparisons, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from experiments import stats
from experiments.comparison import WITHOUT
from experiments.evidence.compared import ADAMW, CONTROL, FINETUNE, Compared, gains, mark
from experiments.evidence.results import Result
from experiments.table import SHARES, known, lead, score_head, several, spread, table

WORKS = 3.0
"""A rate works that is at most so many points worse than AdamW's best."""


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
            row[title] += mark(name, each.entries.get(name, {})) * len(each.rates(name).head(1))
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

    Of an optimizer those workloads count on which it, and AdamW, ran at every rate of the plan.
    """
    some = [each for each in some if each.swept(ADAMW)]
    titles = {name: entry["title"] for each in some for name, entry in each.entries.items()}
    rows = []
    for name, title in titles.items():
        its = [each for each in some if each.swept(name)]
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
                + next(filter(None, (mark(name, w.entries[name]) for w in its)), ""),
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
            titles[name]: known(value, ".1f")
            + ", chosen on" * (name in each.chosen_on)
            + mark(name, each.entries.get(name, {})) * bool(pd.notna(value))
            for name, value in found.items()
        }
        rows.append({"workload": each.title, **cells})
    for name, summary in (("mean", regrets.mean()), ("worst", regrets.max())):
        cells = {titles[n]: f"{summary[n]:.1f} ({regrets[n].count()})" for n in regrets}
        rows.append({"workload": f"**{name} (workloads)**", **cells})
    return table(rows) if len(regrets) else ""


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
