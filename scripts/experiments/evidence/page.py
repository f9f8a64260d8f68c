"""The whole page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glue.errors import UsageError

from experiments.evidence import ablation, experiment, inventory
from experiments.evidence import comparison as comparison_part
from experiments.evidence.files import Result
from experiments.evidence.measures import Comparison
from experiments.evidence.overall import (
    JUDGED,
    Workload,
    goals,
    per_workload,
    scores,
)
from experiments.evidence.pictures import draw
from experiments.plots import learning_curves, valley

INTRODUCTION = """# Evidence

Every figure here is computed by `python scripts/make_report.py` from the JSON files in
`docs/results`; none is typed by hand, but for those of the paper and of its authors. A miss is
reported as a miss, and what was not run says so.

## The scores

Tuned alike: the same number of trials each, then seeds of their own. Mean ± standard deviation over
the seeds; differences with their 95 % interval."""

RULES = """How to read this:

- Every optimizer had the same budget of trials for its learning rate; the best rate then ran with
  seeds of its own. Rates were chosen by the same evaluation data that the seeds report, for all
  alike; on Cora by the validation nodes. Differences are paired by seed and positive where DWMGrad
  is better: in points for metrics shown in percent, else in per cent of AdamW's value, which counts
  as so many points in the mean.
- (a) is met where the mean difference is 0 or more; an interval that includes 0 cannot tell the two
  apart. With one seed that diverged where AdamW's did not, (a) and (b) are not met.
- (b) weighs all workloads equally and takes them as fixed; it is met where the 95 % interval
  (Welch and Satterthwaite's degrees of freedom) lies above 0.
- The preset was revised once after the comparisons had been seen under an earlier form of it, by
  trials on the workloads that it is marked as chosen on and on others that are not here; all rows
  are of the present form. MRPC's budget, range and target were changed with it: in the 32 steps
  that it had before, most trials learned the larger class alone.
- (c) is, for each seed, the first recorded step at which the mean training loss over the last 5 %
  of the budget is at or below AdamW's final one with the same seed, as a share of the budget; the
  median over the seeds, a seed that never gets there counted as never. AdamW itself may touch that
  loss before its end, so the tables by workload compare the share with AdamW's own, which is
  the harder goal of the two.
- (d) is the width of the widest range of learning rates, in powers of ten, within which the trials'
  score stays within the plan's tolerance of AdamW's best trial, linear between trials. Some plans
  have further rates beyond those of the search, to find the range's ends alone. 'At least':
  it touches an end of the range that was searched; where that is AdamW's, its width is not known
  and neither is who has more. A trial that diverged fails. Each trial is one seed, and the rates
  of a search lie a factor of 3 to 4 apart: smaller differences in width say little.
- Not measured: not all that a goal needs is there."""

TABLES = """## The comparisons

'Better by' is the mean over the seeds of the paired differences, with its 95 % t interval; a seed
with which one of the two diverged has no score and makes no pair. Steps and seconds to the plan's
target are medians over the seeds; a seed that missed it counts as never, and is counted. The runs
shared their machine with others, so seconds are rough."""


def workloads_of(results: Sequence[Result], configs: Path) -> list[Workload]:
    """All comparisons that were planned or run, by name."""
    found = [each for each in results if each.kind == "comparison"]
    workloads = {each.name: Workload(each.title, Comparison(each)) for each in found}
    done = {inventory.config_of(each, configs) for each in found}
    for path in sorted((configs / "comparisons").glob("*.yaml")):
        if path not in done:
            values = _values(path)
            title = str(values.get("title") or path.stem)
            workloads[path.stem] = Workload(title, None, bool(values.get("chosen_on")))
    return [workloads[name] for name in sorted(workloads)]


def _values(path: Path) -> dict[str, Any]:
    """A comparison's configuration."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    return values if isinstance(values, dict) else {}


def page(results: Sequence[Result], configs: Path, output: Path) -> str:
    """The page's text; its pictures are written beside `output`."""
    workloads = workloads_of(results, configs)
    parts = [INTRODUCTION, scores(workloads), "## The goals", goals(workloads)]
    for name, title in JUDGED.items():
        parts += [f"### {title} (`{name}`)", per_workload(workloads, name)]
    parts.append(RULES)
    parts += ["## What was run where", inventory.what_was_run(results, configs)]
    parts += [TABLES, *([] if workloads else ["None was run."])]
    for each in workloads:
        if each.comparison is None:
            parts.append(f"### {each.title}\n\nNot run.")
        else:
            picture = f"{output.stem}-{each.comparison.result.name}.png"
            drawn = draw(each.comparison, output.parent / picture)
            parts.append(comparison_part.section(each.comparison, picture if drawn else None))
    parts.append("## The paper's experiments")
    for result in results:
        if result.kind == "experiment":
            parts.append(experiment.section(result, _pictures(result, output)))
    left = inventory.not_run(configs, results)
    if left:
        parts.append(f"### Not run\n\n{left}")
    ablations = [ablation.section(each) for each in results if each.kind == "ablation"]
    parts += ["## Ablations", *(ablations or ["None was run."])]
    return "\n\n".join(parts) + "\n"


def _pictures(result: Result, output: Path) -> list[str]:
    """Draw an experiment's curves and paths; the names of what there was to draw."""
    results = experiment.table_form(result)
    name = f"{output.stem}-experiment-{result.name}"
    drawn = [learning_curves(results, output.parent / f"{name}.png")]
    runs = [run for each in results.values() for run in each]
    if runs and all(run.get("path") for run in runs):
        drawn.append(valley(results, output.parent / f"{name}-path.png"))
    return [path.name for path in drawn if path]
