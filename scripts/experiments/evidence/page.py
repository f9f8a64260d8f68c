"""The whole page: `page.md.j2`, filled in."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from glue.errors import UsageError
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments import table
from experiments.evidence import tables
from experiments.evidence.compared import Compared
from experiments.evidence.results import Result, read_result
from experiments.plots import draw_experiment, rate_curves
from experiments.recording import REACH

STUDIES = ("ablation", "deaf", "guard", "length", "machine", "replay")
"""How the files of ablations begin; what docs/plans/loss-limit.md tried has a folder of its own."""
KINDS = {
    "comparison": ("comparison", Compared),
    "experiment": ("experiment", Result),
    **dict.fromkeys(STUDIES, ("ablation", Result)),
}
"""How files begin: their kind, and what they are read as."""


def read_results(folder: Path) -> list[Result]:
    """All results of a folder, by kind and name; a UsageError names a file that is no result."""
    if not folder.is_dir():
        raise UsageError(f"--results {folder}: no such folder; it should hold comparison-*.json")
    return [
        make(first, path.stem.removeprefix(f"{first}-"), read_result(path, kind))
        for first, (kind, make) in KINDS.items()
        for path in sorted(folder.glob(f"{first}-*.json"))
    ]


def page(results: Sequence[Result], configs: Path, output: Path) -> str:
    """The page's text; its pictures are written beside `output`."""
    of = {each.file: config_of(each, configs) for each in results}
    files = [
        path
        for folder in ("comparisons", "experiments", "studies")
        for path in sorted(configs.glob(f"{folder}/*.yaml"))
    ]
    found = {path: [each for each in results if of[each.file] == path] for path in files}
    comparisons = [each for each in results if isinstance(each, Compared)]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = table.cell
    environment.globals.update(vars(table))
    return environment.get_template("page.md.j2").render(
        results=results,
        comparisons=comparisons,
        confirming=[each for each in comparisons if not each.chosen_on],
        ahead_anew=Compared.ahead_anew,
        tables=tables,
        controls=tables.controls(comparisons, results),
        found=found,
        others=[each for each in results if of[each.file] not in files],
        pictures={each.file: draw(each, output) for each in results},
        reach=REACH,
    )


def config_of(result: Result, configs: Path) -> Path | None:
    """The file that a result is of, by the command that made it."""
    for word in shlex.split(str(result.data.get("command") or "")):
        path = configs / Path(*Path(word).parts[1:])
        if word.endswith(".yaml") and path.is_file():
            return path
    return None


def draw(result: Result, output: Path) -> list[str]:
    """Draw what there is to draw; the pictures' names."""
    drawn: list[Path] = []
    if isinstance(result, Compared) and len(result.rates()):
        picture = output.parent / f"{output.stem}-{result.name}.png"
        drawn = [rate_curves(result.rates(), result.data, picture)]
    elif result.kind == "experiment":
        first = output.parent / f"{output.stem}-experiment-{result.name}"
        drawn = draw_experiment(result, Path(f"{first}.png"), Path(f"{first}-path.png"))
    return [path.name for path in drawn]
