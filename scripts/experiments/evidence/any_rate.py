"""The page of what a wrong learning rate costs, from the files rates-*.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.evidence.results import read_result
from experiments.plots import rate_curves
from experiments.rates import WORKS, frame, rates_table
from experiments.table import score_head, table

Records = Sequence[Mapping[str, Any]]


def any_rate_page(results: Path, output: Path) -> str:
    """The page's text; its pictures are written beside `output`. Empty without results.

    Raises:
        UsageError: a file is no result of this kind; the message names it.
    """
    paths = sorted(results.glob("rates-*.json"))
    records = [read_result(path, "rates") for path in paths]
    if not records:
        return ""
    parts = [HEAD]
    confirming = [each for each in records if not each["plan"]["chosen_on"]]
    for title, some in (
        ("The workloads that took no part in choosing", confirming),
        ("All workloads", records),
    ):
        if some and (some is not records or len(confirming) < len(records)):
            parts += [f"## {title}", overall(some)]
    for path, record in zip(paths, records, strict=True):
        picture = output.parent / f"{path.stem}.png"
        rate_curves(frame(record), record, picture)
        chosen = ", chosen on" * record["plan"]["chosen_on"]
        seeds = ", ".join(map(str, record["plan"]["seeds"]))
        parts += [
            f"## {record['title']}{chosen}",
            f"{score_head(record['metric'], record['higher_is_better']).capitalize()}, by the "
            f"learning rate; the mean over seeds {seeds}; {record['steps']} steps a run.",
            rates_table(record),
            f"![Score over learning rate]({picture.name})",
            f"Command: `{record['command']}` ({path.name}).",
        ]
    return "\n\n".join(parts) + "\n"


def overall(records: Records) -> str:
    """A row an optimizer: what it loses to AdamW tuned, at one rate for all workloads."""
    runs = pd.concat(
        [frame(record).assign(workload=record["workload"]) for record in records],
        ignore_index=True,
    )
    means = runs.groupby(["title", "rateless", "workload", "lr"]).points.mean().reset_index()
    best = means[means.title == "AdamW"].groupby("workload").points.max()
    means["regret"] = means.workload.map(best) - means.points
    seconds = runs.groupby(["title", "workload"]).seconds.median().unstack()
    relative = (seconds / seconds.loc["AdamW"]).mean(axis=1)
    rows = []
    for title in runs.title.unique():
        own = means[means.title == title]
        regrets = own.pivot(index="lr", columns="workload", values="regret")
        regrets = regrets.reindex(columns=list(best.index))
        free = bool(own.rateless.iloc[0])
        lr = regrets.mean(axis=1, skipna=False).idxmin()
        works = (regrets <= WORKS).sum() / 2
        everywhere = f"works on {int(2 * works.sum())} of {len(works)}"
        rows.append(
            {
                "optimizer": title,
                "one learning rate for all": "none" if free else f"{lr:.0e}",
                "regret, mean": f"{regrets.loc[lr].mean():.1f}",
                "regret, worst": f"{regrets.loc[lr].max():.1f} ({regrets.loc[lr].idxmax()})",
                "decades that work, mean": everywhere if free else f"{works.mean():.1f}",
                "least": "-" if free else f"{works.min():g}",
                "time of a run to AdamW's": f"{relative[title]:.2f}",
            }
        )
    return table(rows)


HEAD = f"""# Any learning rate

What does a wrong learning rate cost? Every optimizer ran at every learning rate from 1e-5 to 1, in
half decades, with each workload's schedule, warm-up and weight decay. Nothing was tuned. Every
figure here is computed by `python scripts/make_report.py` from `docs/results/rates-*.json`.

- **Regret** is what an optimizer loses to AdamW at AdamW's best rate on the same workload, in
  points: hundredths of an accuracy or F1, or 100 times the logarithm of a perplexity. Below 0 it
  is ahead. A run that diverged counts as the worst run that did not.
- **One learning rate for all** is each optimizer's best in hindsight, by its mean regret.
- **A rate works** that is at most {WORKS:g} points worse than AdamW's best. Each counts as half a
  decade. Optimizers without a learning rate ran once.
- **Seconds** are rough: the runs shared their machine with others."""
