"""The whole page: `page.md.j2`, filled in."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from glue.errors import UsageError
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments import table
from experiments.compact import full_results
from experiments.evidence import words
from experiments.evidence.measures import FASTER, Measured, Result
from experiments.plots import comparison_curves, learning_curves, valley
from experiments.recording import REACH


def page(results: Sequence[Result], configs: Path, output: Path) -> str:
    """The page's text; its pictures are written beside `output`."""
    files = [
        *sorted(configs.glob("comparisons/*.yaml")),
        *sorted(configs.glob("experiments/*.yaml")),
    ]
    found = {path: [each for each in results if config_of(each, configs) == path] for path in files}
    workloads = {each.name: each for each in results if isinstance(each, Measured)}
    for path in files:
        if path.parent.name == "comparisons" and not found[path]:
            workloads[path.stem] = planned(path)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = table.cell
    environment.globals.update({**vars(table), **vars(words)}, full_results=full_results)
    return environment.get_template("page.md.j2").render(
        results=results,
        workloads=[workloads[name] for name in sorted(workloads)],
        found=found,
        others=[each for each in results if not any(each in some for some in found.values())],
        pictures={each.file: draw(each, output) for each in {*results, *workloads.values()}},
        reach=REACH,
        share=f"{FASTER:g}",
    )


def config_of(result: Result, configs: Path) -> Path | None:
    """The file that a result is of, by the command that made it."""
    for word in shlex.split(str(result.data.get("command") or "")):
        path = configs / Path(*Path(word).parts[1:])
        if word.endswith(".yaml") and path.is_file():
            return path
    return None


def planned(path: Path) -> Measured:
    """A comparison that has a file and no result."""
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    values = values if isinstance(values, dict) else {}
    plan = {
        "seeds": [],
        "tuning": {},
        "target": 0,
        "tolerance": 0,
        "chosen_on": values.get("chosen_on"),
    }
    data = {"title": values.get("title"), "workload": path.stem, "plan": plan, "steps": 0}
    return Measured("comparison", path.stem, {**data, "complete": False})


def draw(result: Result, output: Path) -> list[str]:
    """Draw what there is to draw; the pictures' names."""
    drawn: list[Path | None] = []
    if isinstance(result, Measured):
        drawn = [comparison_curves(result, output.parent / f"{output.stem}-{result.name}.png")]
    elif result.kind == "experiment":
        runs, name = full_results(result.data), f"{output.stem}-experiment-{result.name}"
        drawn = [learning_curves(runs, output.parent / f"{name}.png")]
        if len(result.all_runs) and result.all_runs.path.map(bool).all():
            drawn.append(valley(runs, output.parent / f"{name}-path.png"))
    return [path.name for path in drawn if path]
