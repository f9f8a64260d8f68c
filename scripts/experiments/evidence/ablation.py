"""The section of an ablation: forms of one optimizer side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.evidence.experiment import facts, incomplete
from experiments.evidence.files import Result
from experiments.evidence.words import NOT_RUN, difference, mean_of, plain, several, table
from experiments.recording import REACH
from experiments.stats import Estimate, estimate
from experiments.table import SHARES, spread

_NOISE = (
    "A step's signal was noise where it had not the sign of the trend, the mean of the "
    f"{REACH} losses before less that of the {REACH} after. On losses that are noise alone a "
    "signal is wrong on 50 %, one smoothed by 0.9 on 47 %: it shares losses with the mean before."
)


def section(result: Result) -> str:
    """An ablation's section: each label beside the first."""
    heads = ["label", "settings", _score_head(result), "training loss",
             f"better than the first by{_unit(result)} [95 %]", "mean window",
             "steps with a positive signal", "steps whose signal was noise"]  # fmt: skip
    entries = result.data["results"]
    first = next(iter(entries.values()), None)
    rows = []
    for label, entry in entries.items():
        runs = entry["runs"]
        scores = [run["score"] for run in runs if run["score"] is not None]
        losses = [run["train_loss"] for run in runs if run["train_loss"] is not None]
        diverged = sum(run["diverged"] for run in runs)
        score = spread(scores, result.data["metric"]) if runs else NOT_RUN
        rows.append(
            [
                label,
                "-" if entry is first else _changes(first, entry),
                score + (f", {diverged} diverged" if diverged else ""),
                spread(losses),
                "-" if entry is first else _better(result, first, entry),
                mean_of((_mean_window(run) for run in runs), ".1f"),
                _share(run.get("increases") for run in runs),
                _share(run.get("signal_noise") for run in runs),
            ]
        )
    parts = [f"### {result.title}", *incomplete(result), table(heads, rows)]
    return "\n\n".join([*parts, _NOISE, facts(result)])


def _score_head(result: Result) -> str:
    metric, arrow = result.data["metric"], "higher" if result.data["higher_is_better"] else "lower"
    return f"{metric}{', %' if metric in SHARES else ''} ({arrow} is better)"


def _unit(result: Result) -> str:
    return ", points" if result.data["metric"] in SHARES else f", {result.data['metric']}"


def _better(result: Result, first: Any, entry: Any) -> str:
    found = paired(result, first["runs"], entry["runs"])
    if found is None:
        return "no pair of seeds"
    fewer = 1 < found.count < len(entry["runs"])
    return difference(found) + (f" ({several(found.count, 'pair')})" if fewer else "")


def paired(result: Result, first: Sequence[Any], runs: Sequence[Any]) -> Estimate | None:
    """The mean over common seeds of what `runs` are better by; None without such seeds."""
    base = {run["seed"]: run["score"] for run in first if run["score"] is not None}
    sign = 1 if result.data["higher_is_better"] else -1
    scale = 100 if result.data["metric"] in SHARES else 1
    return estimate(
        [
            scale * sign * (run["score"] - base[run["seed"]])
            for run in runs
            if run["score"] is not None and run["seed"] in base
        ]
    )


def _changes(first: Any, entry: Any) -> str:
    """The settings that are not as in the first label."""
    old, new = ({"contender": e.get("contender"), **e["settings"]} for e in (first, entry))
    changed = [
        f"{name}={plain(new[name])}" if name in new else f"{name} not set"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    return ", ".join(changed) or "the same"


def _mean_window(run: Mapping[str, Any]) -> float | None:
    windows = [window for _, window in run.get("windows") or ()]
    return sum(windows) / len(windows) if windows else None


def _share(found: Iterable[float | None]) -> str:
    """The mean of those that are known, in percent."""
    shares = [share for share in found if share is not None]
    return f"{100 * sum(shares) / len(shares):.0f} %" if shares else "-"
