"""What was run where, and what was not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from experiments.evidence.experiment import PAPER
from experiments.evidence.files import Result
from experiments.evidence.words import NOT_RUN, duration, machines, table

REASONS = {
    "cifar10": "needs a GPU",
    "glue": "hours without a GPU",
    "glue_lora": "hours without a GPU",
    "urbansound8k": "the data cannot be had",
}
"""Why a file of configs/ was not run."""


def what_was_run(results: Sequence[Result], configs: Path) -> str:
    """A row for each file of configurations, and for each result of none of them."""
    rows, shown = [], set()
    for folder in ("comparisons", "experiments"):
        for path in sorted((configs / folder).glob("*.yaml")):
            found = [each for each in results if config_of(each, configs) == path]
            shown |= {each.file for each in found}
            file = f"`{folder}/{path.name}`"
            rows += [_ran(file, each) for each in found] or [[file, _reason(path), *["-"] * 4]]
    rows += [_ran("-", each) for each in results if each.file not in shown]
    return table(["file of configs/", "run", "result", "seeds", "machine", "training in all"], rows)


def config_of(result: Result, configs: Path) -> Path | None:
    """The file that a result is of, by the command that made it."""
    for word in shlex.split(str(result.data.get("command") or "")):
        path = configs / Path(*Path(word).parts[1:])
        if word.endswith(".yaml") and path.is_file():
            return path
    return None


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
        if path not in done and not path.stem.startswith("ablation"):
            paper = f" (the paper reports {PAPER[path.stem]})" if path.stem in PAPER else ""
            lines.append(f"- `{path.name}`{paper}: {_reason(path)}.")
    return "\n".join(lines)
