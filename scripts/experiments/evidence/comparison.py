"""A comparison's section: two tables, a picture, and what was run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.evidence.measures import ADAMW, Comparison, Runs
from experiments.evidence.words import (
    NOT_RUN,
    difference,
    duration,
    machines,
    missed,
    plain,
    several,
    table,
    versions,
)
from experiments.stats import median_of_all
from experiments.table import SHARES, spread


def section(comparison: Comparison, picture: str | None) -> str:
    """The whole section.

    Args:
        comparison: of what.
        picture: the picture's name beside the page; None: there is none.
    """
    result = comparison.result
    parts = [f"### {result.title}"]
    if not result.complete:
        parts.append(
            f"**Incomplete:** by `{result.file}` not all of the plan was run; what is missing "
            "says so below."
        )
    errors = [
        f"- {comparison.title(name)} was run in another form than it has today"
        for name in comparison.names
        if comparison.outdated(name)
    ] + [
        f"- {comparison.title(name)} stopped with: {comparison.error(name)}"
        for name in comparison.names
        if comparison.error(name)
    ]
    if errors:
        parts.append("\n".join(errors))
    parts += ["#### Tuned", tuned(comparison)]
    if comparison.plan.get("shared"):
        shared = comparison.plan["shared"]
        parts += [
            f"#### Everyone at the paper's one learning rate, {shared['lr']:g}",
            at_one_rate(comparison),
        ]
    if picture:
        parts.append(
            f"![{result.title}: score over learning rate, training loss over steps]({picture})"
        )
    parts.append(facts(comparison))
    return "\n\n".join(parts)


def tuned(comparison: Comparison) -> str:
    """A row for each contender at the best learning rate of its search."""
    heads = ["optimizer", "best lr", *_heads(comparison), "trials", "diverged"]
    rows = []
    for name in comparison.names:
        trials, seeds = comparison.runs(name, "trials"), comparison.runs(name, "seeds")
        best = comparison.best_lr(name)
        lr = "-" if best is None else f"{best:g}"
        if comparison.at_the_edge(name):
            lr += ", an end of its range"
        if beyond := comparison.better_beyond(name):
            lr += f", not as good as {beyond:g} beyond it"
        counted = f"{_diverged(trials)} of {several(len(trials), 'trial')}" if trials else ""
        bad = ", ".join(filter(None, [counted, _of_seeds(seeds)]))
        cells = _cells(comparison, name, "seeds")
        rows.append([comparison.title(name), lr, *cells, str(len(trials)), bad or "-"])
    return table(heads, rows)


def at_one_rate(comparison: Comparison) -> str:
    """A row for each contender, without a search."""
    rows = []
    for name in comparison.names:
        bad = _of_seeds(comparison.runs(name, "shared")) or "-"
        rows.append([comparison.title(name), *_cells(comparison, name, "shared"), bad])
    return table(["optimizer", *_heads(comparison), "diverged"], rows)


def _heads(comparison: Comparison) -> list[str]:
    arrow = "higher" if comparison.higher else "lower"
    share = ", %" if comparison.metric in SHARES else ""
    return [
        f"{comparison.metric}{share} ({arrow} is better)",
        f"better than AdamW by, {comparison.unit} [95 %]",
        "training loss",
        "steps to target",
        "seconds to target",
    ]


def _cells(comparison: Comparison, name: str, part: str) -> list[str]:
    runs = comparison.runs(name, part)
    if not runs:
        return [NOT_RUN, *["-"] * 4]
    scores = [run["score"] for run in runs if run["score"] is not None]
    losses = [run["train_loss"] for run in runs if run["train_loss"] is not None]
    score = spread(scores, comparison.metric)
    planned = len(comparison.seeds(part))
    if len(runs) < planned:
        score += f" ({len(runs)} of {planned} seeds)"
    better = "-" if name == ADAMW else _better(comparison, name, part)
    steps, seconds = comparison.target_steps(name, part), comparison.target_seconds(name, part)
    return [score, better, spread(losses), _reached(steps, ".0f"), _reached(seconds, ".1f")]


def _better(comparison: Comparison, name: str, part: str) -> str:
    found = comparison.difference(name, part)
    if found is None:
        return "no pair of seeds"
    pairs = len(comparison.seeds(part))
    fewer = f" ({several(found.count, 'pair')})" if 1 < found.count < pairs else ""
    return difference(found) + fewer


def _reached(values: Sequence[float | None], form: str) -> str:
    median = median_of_all(values)
    parts = [] if median is None else [format(median, form)]
    return ", ".join([*parts, *filter(None, [missed(values)])])


def _diverged(runs: Runs) -> int:
    return sum(run["diverged"] for run in runs)


def _of_seeds(runs: Runs) -> str:
    return f"{_diverged(runs)} of {several(len(runs), 'seed')}" if runs else ""


def facts(comparison: Comparison) -> str:
    """Command, machine, versions, time and plan."""
    result, plan = comparison.result, comparison.plan
    seconds = sum(run["seconds"] for run in result.runs)
    return "\n".join(
        [
            f"- Plan: {_plan(comparison)}.",
            f"- {several(len(result.runs), 'run')}, {duration(seconds)} of training in all "
            f"(`{result.file}`).",
            f"- Command: `{result.data.get('command') or 'not recorded'}`",
            f"- Machine: {machines(result.data['machine'])}.",
            f"- Versions: {versions(result.data['versions'])}."
            + _preset(comparison) + _chosen(plan),
        ]
    )  # fmt: skip


def _plan(comparison: Comparison) -> str:
    plan, tuning = comparison.plan, comparison.plan["tuning"]
    search: Mapping[str, Any] = plan.get("search") or {}
    if search:
        sought = f"learning rates sought from {search['low']:g} to {search['high']:g}"
    else:
        sought = "learning rates sought in each optimizer's own range"
    by = tuning.get("by", "score")
    seeds = ", ".join(str(seed) for seed in plan["seeds"])
    return (
        f"{comparison.budget} steps a run; target {comparison.metric} {plan['target']:g}; "
        f"{tuning.get('trials', '?')} trials each (the first {tuning.get('grid', '?')} a grid) "
        f"with seed {tuning.get('seed', '?')}, the best by "
        f"{comparison.metric if by == 'score' else by}; {sought}; seeds {seeds}; a learning rate "
        f"works within {plain(plan['tolerance'])} of AdamW's best trial"
    )


def _chosen(plan: Mapping[str, Any]) -> str:
    return "\n- This workload took part in choosing the preset." if plan.get("chosen_on") else ""


def _preset(comparison: Comparison) -> str:
    """What the preset was when it was measured."""
    values = comparison.defaults("dwmgrad-finetune")
    told = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"\n- The preset: {told}." if told else ""
