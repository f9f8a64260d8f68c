"""Sections of the paper's experiments and of the ablations, and what was run where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dwmgrad.experiments.evidence.files import Result
from dwmgrad.experiments.evidence.words import (
    NOT_RUN,
    difference,
    duration,
    machines,
    mean_of,
    plain,
    several,
    table,
    versions,
)
from dwmgrad.experiments.stats import Estimate, estimate
from dwmgrad.experiments.table import SHARES, markdown, spread

AUTHORS_END = (1.00528951, 1.01149244, 1.0638e-4)
"""x, y and f where the authors' NumPy class ends on Rosenbrock's function."""

PAPER = {"cora": "79.80 % accuracy", "cifar10": "F1 90.67 %"}
"""What the paper reports for DWMGrad (arXiv 2510.25042), by workload."""

REASONS = {"cifar10": "needs a GPU", "urbansound8k": "the data cannot be had"}
"""Why a file of configs/ was not run."""


def table_form(result: Result) -> dict[str, list[dict[str, Any]]]:
    """Label: runs in the form that `experiments.table` and `experiments.plots` take."""
    keep = {key: result.data[key] for key in ("workload", "metric", "higher_is_better")}
    return {
        label: [
            {**keep, **run, "settings": entry["settings"], "history": _history(run)}
            for run in entry["runs"]
        ]
        for label, entry in result.data["results"].items()
    }


def _history(run: Mapping[str, Any]) -> list[dict[str, float]]:
    names = {"losses": "loss", "scores": "score", "windows": "window"}
    return [
        {"step": step, own: value}
        for name, own in names.items()
        for step, value in run.get(name) or ()
    ]


def section(result: Result, pictures: Sequence[str]) -> str:
    """An experiment's section.

    Args:
        result: its file.
        pictures: names beside the page.
    """
    parts = [f"### {result.title}", *_incomplete(result), markdown(table_form(result))]
    if result.data["workload"] == "rosenbrock":
        parts.append(_rosenbrock(result))
    elif result.data["workload"] in PAPER:
        parts.append(_beside_the_paper(result))
    parts += [f"![{result.title}]({name})" for name in pictures]
    return "\n\n".join([*parts, facts(result)])


def _rosenbrock(result: Result) -> str:
    rows = []
    for label, entry in result.data["results"].items():
        for run in entry["runs"][:1]:  # nothing is random: all seeds end there
            x, y = (run.get("path") or [[None, None]])[-1]
            f = "diverged" if run["score"] is None else f"{run['score']:.4e}"
            rows.append([label, "-" if x is None else f"{x:.8f}", "-" if y is None else f"{y:.8f}",
                         f])  # fmt: skip
    x, y, value = AUTHORS_END
    rows.append(["the authors' DWMGrad, max_window 15", f"{x:.8f}", f"{y:.8f}", f"{value:.4e}"])
    return "Where each ends:\n\n" + table(["optimizer", "x", "y", "f"], rows)


def _beside_the_paper(result: Result) -> str:
    """Our DWMGrad's means, beside the paper's figure."""
    metric, ours = result.data["metric"], []
    for label, entry in result.data["results"].items():
        scores = [run["score"] for run in entry["runs"] if run["score"] is not None]
        if "dwmgrad" in label.lower():
            unit = " %" if metric in SHARES and scores else ""
            count = several(len(entry["runs"]), "seed")
            ours.append(f"{label}: {spread(scores, metric)}{unit} over {count}")
    paper = PAPER[result.data["workload"]]
    return f"The paper reports {paper} for DWMGrad. Here {'; '.join(ours) or NOT_RUN}."


def ablation(result: Result) -> str:
    """An ablation's section: each label beside the first."""
    heads = ["label", "settings", _score_head(result), "training loss",
             f"better than the first by{_unit(result)} [95 %]", "mean window",
             "steps with a rise of the window"]  # fmt: skip
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
                _rises(runs),
            ]
        )
    parts = [f"### {result.title}", *_incomplete(result), table(heads, rows)]
    return "\n\n".join([*parts, facts(result)])


def _score_head(result: Result) -> str:
    metric, arrow = result.data["metric"], "higher" if result.data["higher_is_better"] else "lower"
    return f"{metric}{', %' if metric in SHARES else ''} ({arrow} is better)"


def _unit(result: Result) -> str:
    return ", points" if result.data["metric"] in SHARES else f", {result.data['metric']}"


def _better(result: Result, first: Any, entry: Any) -> str:
    found = paired(result, first["runs"], entry["runs"])
    return "no pair of seeds" if found is None else difference(found)


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


def _rises(runs: Sequence[Mapping[str, Any]]) -> str:
    """The share of steps that made the window longer, where it is known of each step."""
    shares = [share for share in map(_rise, runs) if share is not None]
    return f"{100 * sum(shares) / len(shares):.0f} %" if shares else "-"


def _rise(run: Mapping[str, Any]) -> float | None:
    given = run.get("increases")
    if isinstance(given, (int, float)):
        return float(given)
    points = run.get("windows") or []
    pairs = list(zip(points, points[1:], strict=False))
    if not pairs or any(after[0] - before[0] != 1 for before, after in pairs):
        return None  # between records the window may rise and fall unseen
    return sum(after[1] > before[1] for before, after in pairs) / len(pairs)


def _incomplete(result: Result) -> list[str]:
    if result.complete:
        return []
    failures = result.data.get("failures") or []
    return [f"**Incomplete:** {several(len(failures), 'run')} failed, by `{result.file}`."]


def facts(result: Result) -> str:
    """Command, machine, versions and time."""
    seconds = sum(run["seconds"] for run in result.runs)
    return "\n".join(
        [
            f"- {result.data['steps']} steps a run; {several(len(result.runs), 'run')}, "
            f"{duration(seconds)} of training in all (`{result.file}`).",
            f"- Command: `{result.data.get('command') or 'not recorded'}`",
            f"- Machine: {machines(result.data['machine'])}.",
            f"- Versions: {versions(result.data['versions'])}.",
        ]
    )


def what_was_run(results: Sequence[Result], configs: Path) -> str:
    """A row for each file of configurations, and for each result of none of them."""
    rows, shown = [], set()
    for folder in ("comparisons", "experiments", "ablations"):
        for path in sorted((configs / folder).glob("*.yaml")):
            found = [each for each in results if config_of(each, configs) == path]
            shown |= {each.file for each in found}
            file = f"`{folder}/{path.name}`"
            rows += [_ran(file, each) for each in found] or [[file, _reason(path), *["-"] * 4]]
    rows += [_ran("-", each) for each in results if each.file not in shown]
    return table(["file of configs/", "run", "result", "seeds", "machine", "training in all"], rows)


def config_of(result: Result, configs: Path) -> Path | None:
    """The file that a result is of: its name, or the longest that its name begins with."""
    folders = {"comparison": ["comparisons"]}.get(result.kind, ["experiments", "ablations"])
    name = result.name.replace("-", "_")
    fitting = [
        path
        for folder in folders
        for path in sorted((configs / folder).glob("*.yaml"))
        if name == path.stem or name.startswith(f"{path.stem}_")
    ]
    return max(fitting, key=lambda path: len(path.stem), default=None)


def _reason(path: Path) -> str:
    reason = REASONS.get(path.stem)
    return f"{NOT_RUN}: {reason}" if reason else NOT_RUN


def _ran(file: str, result: Result) -> list[str]:
    state = "run" if result.complete else "incomplete"
    seeds = sorted({run["seed"] for run in result.runs})
    seconds = sum(run["seconds"] for run in result.runs)
    return [file, state, f"`{result.file}`", ", ".join(map(str, seeds)) or "-",
            machines(result.data["machine"]), duration(seconds)]  # fmt: skip


def not_run(configs: Path, results: Sequence[Result]) -> str:
    """A line for each of the paper's experiments that has a file and no result."""
    done = {config_of(each, configs) for each in results}
    lines = []
    for path in sorted((configs / "experiments").glob("*.yaml")):
        if path not in done:
            paper = f" (the paper reports {PAPER[path.stem]})" if path.stem in PAPER else ""
            lines.append(f"- `{path.name}`{paper}: {_reason(path)}.")
    return "\n".join(lines)
