"""The section of one of the paper's experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.evidence.files import Result
from experiments.evidence.words import (
    NOT_RUN,
    duration,
    machines,
    several,
    table,
    versions,
)
from experiments.table import SHARES, markdown, spread

AUTHORS_END = (1.00528951, 1.01149244, 1.0638e-4)
"""x, y and f where the authors' NumPy class ends on Rosenbrock's function."""

PAPER = {"cora": "79.80 % accuracy", "cifar10": "F1 90.67 %"}
"""What the paper reports for DWMGrad (arXiv 2510.25042), by workload."""


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
    parts = [f"### {result.title}", *incomplete(result), markdown(table_form(result))]
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
            end = [f"{value:.9g}" for value in (run.get("path") or [[]])[-1]] or ["-", "-"]
            value = "diverged" if run["score"] is None else f"{run['score']:.4e}"
            rows.append([label, *end, value])
    x, y, f = AUTHORS_END
    rows.append(["the authors' DWMGrad, max_window 15", f"{x:.9g}", f"{y:.9g}", f"{f:.4e}"])
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


def incomplete(result: Result) -> list[str]:
    """What is missing, where something is."""
    if result.complete:
        return []
    failures = result.data.get("failures") or []
    empty = [label for label, entry in result.data["results"].items() if not entry["runs"]]
    parts = [f"{several(len(failures), 'run')} failed"] if failures else []
    parts += [f"{NOT_RUN}: {', '.join(empty)}"] if empty else []
    return [f"**Incomplete** by `{result.file}`: {'; '.join(parts)}."]


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
