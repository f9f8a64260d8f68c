"""Results as they are kept in the repository: one small JSON for many runs, without any folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from glue.errors import UsageError

from experiments.comparison import WITHOUT, Comparison, final_of, told
from experiments.config import Experiment
from experiments.contenders import get_contender
from experiments.runner import Failure, made
from experiments.workload import Workload

Result = Mapping[str, Any]

CURVES = {"scores": "score", "losses": "loss", "windows": "window"}
"""Name in a record: name in a run's history."""

_NOT_OF_RUNS = ("title", "contenders", "rates", "seeds", "final", "chosen_on")
"""What a plan may say otherwise without any run's being another."""


def comparison_record(
    comparison: Comparison, failures: Sequence[Failure], command: str
) -> dict[str, Any]:
    """What there is of a comparison; contenders without a run are left out."""
    plan, by = comparison.plan(), comparison.values["by"]
    final, contenders, found = comparison.final_runs(), {}, list[Result]()
    for name, runs in comparison.rate_runs().items():
        own = get_contender(name)
        first, last = (made(some, comparison.output_dir) for some in (runs, final.get(name, [])))
        found += [*first, *last]
        if first:
            contenders[name] = {
                "title": own.title,
                "rule": own.rule,
                "rateless": own.rateless,
                "best_lr": comparison.best_lr(name),
                "runs": [{**run_record(each), "by": told(each, by)} for each in first],
                "final": [run_record(each) for each in last],
            }
    return {
        "kind": "comparison",
        "title": comparison.title,
        **head(comparison.workload, found, command),
        "plan": plan,
        "contenders": contenders,
        "complete": is_complete(contenders, plan),
        "failures": list(map(failure_record, failures)),
    }


def is_complete(contenders: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether a record has all that its plan asks for."""
    new = len(final_of(plan)["seeds"])
    for name in plan["contenders"]:
        entry = contenders.get(name) or {
            "rateless": False,
            "best_lr": None,
            "runs": (),
            "final": (),
        }
        rates = 1 if entry["rateless"] else len(plan["rates"])
        last = 0 if entry["best_lr"] is None else new  # all rates may have diverged
        if (len(entry["runs"]), len(entry["final"])) != (rates * len(plan["seeds"]), last):
            return False
    return True


def check_same_plan(kept: Mapping[str, Any], comparison: Comparison) -> None:
    """Whether the runs of an older record stand beside those that the comparison asks for.

    Raises:
        UsageError: they do not; the message names the first difference.
    """
    now = {
        "plan": {**comparison.plan(), "final.options": final_of(comparison.plan())["options"]},
        "description": comparison.workload.description(),
    }
    kept = {**kept, "plan": {**kept["plan"], "final.options": final_of(kept["plan"])["options"]}}
    for part, values in now.items():
        old, new = kept.get(part) or {}, json.loads(json.dumps(values))
        for name in {**old, **new}:
            if name not in _NOT_OF_RUNS and old.get(name) != new.get(name):
                raise UsageError(
                    f"its {part} has {name} {old.get(name)!r}, the file asks for "
                    f"{new.get(name)!r}: give another --output"
                )


def joined(record: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with what `kept`, an older one, has more of what the plan asks for.

    The folder of its runs may be gone, or another one.
    """
    plan, contenders = record["plan"], {}
    new = final_of(plan)["seeds"]
    for name in plan["contenders"]:
        both = [each["contenders"].get(name) for each in (record, kept)]
        if both[1]:
            rates = [WITHOUT] if both[1]["rateless"] else plan["rates"]
            both[1] = {
                **both[1],
                "runs": [
                    run
                    for run in both[1]["runs"]
                    if run["lr"] in rates and run["seed"] in plan["seeds"]
                ],
                "final": [run for run in both[1]["final"] if run["seed"] in new],
            }
        best = max(both, key=lambda each: len(each["runs"] + each["final"]) if each else 0)
        if best:
            contenders[name] = best
    return {
        **record,
        **{part: _distinct([*kept[part], *record[part]]) for part in ("machine", "versions")},
        "contenders": contenders,
        "complete": is_complete(contenders, record["plan"]),
    }


def experiment_record(
    experiment: Experiment,
    found: Mapping[str, Sequence[Result]],
    failures: Sequence[Failure],
    command: str,
) -> dict[str, Any]:
    """What there is of an experiment; `found` has each label's results."""
    return {
        "kind": experiment.kind,
        "title": experiment.title,
        **head(experiment.workload, [each for some in found.values() for each in some], command),
        "results": {
            label: {
                "contender": experiment.contenders[label][0],
                "settings": experiment.workload.settings(*experiment.contenders[label]),
                "runs": [_run_with_window(each) for each in some],
            }
            for label, some in found.items()
        },
        "failures": list(map(failure_record, failures)),
    }


def full_results(record: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """An experiment's record as label: results, as far as it has them."""

    def history(run: Result) -> list[dict[str, float]]:
        return [{"step": s, key: v} for name, key in CURVES.items() for s, v in run.get(name, ())]

    return {
        label: [
            {**record, **run, "settings": entry["settings"], "history": history(run)}
            for run in entry["runs"]
        ]
        for label, entry in record["results"].items()
    }


def head(workload: Workload, found: Sequence[Result], command: str) -> dict[str, Any]:
    """What every record says of its workload, and of where its runs were made."""
    return {
        "workload": workload.name,
        "metric": workload.metric,
        "higher_is_better": workload.higher_is_better,
        "steps": workload.steps,
        "description": workload.description(),
        "command": command,
        "machine": _distinct([result.get("machine") for result in found]),
        "versions": _distinct([result.get("versions") for result in found]),
    }


def _distinct(records: Sequence[Any]) -> list[Any]:
    return [each for n, each in enumerate(records) if each and each not in records[:n]]


def run_record(result: Result, *curves: str) -> dict[str, Any]:
    """A run, with these of its `CURVES`, and its scores."""
    return {
        "lr": result["settings"]["lr"],
        "seed": result["seed"],
        "score": result["score"],
        "diverged": result["diverged"],
        "train_loss": _short(result["train_loss"]),
        "steps": result["steps"],
        "seconds": _short(result["seconds"]),
        **{
            name: [[p["step"], _short(p[key])] for p in result["history"] if key in p]
            for name, key in CURVES.items()
            if name in ("scores", *curves)
        },
    }


def _run_with_window(result: Result) -> dict[str, Any]:
    run = run_record(result, "losses", "windows")
    if not run["windows"]:
        del run["windows"]
    for name in ("increases", "signal_noise"):
        if result.get(name) is not None:
            run[name] = _short(result[name])
    if "skipped" in result:
        run["skipped"] = result["skipped"]
    if "path" in result:
        run["path"] = [[_short(x, 6) for x in point] for point in result["path"]]
    return run


def _short(value: Any, digits: int = 5) -> Any:
    """To so many significant digits; what is no float stays."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def failure_record(failure: Failure) -> dict[str, str]:
    """A run that ended with an error."""
    return {"run": str(failure.run), "error": without_folders(failure.error)}


def without_folders(text: str) -> str:
    """The last parts alone of all paths in `text`."""
    return re.sub(r"(?:\b[A-Za-z]:)?[^\s'\"(,;:=]*[/\\](?=\S)", "", text)


def as_text(values: Any, depth: int = 0) -> str:
    """JSON in which lists of numbers, and of pairs, take one line each."""
    pad = " " * (depth + 1)
    if isinstance(values, Mapping) and values:
        lines = [f"{pad}{json.dumps(k)}: {as_text(v, depth + 1)}" for k, v in values.items()]
        return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}"
    if isinstance(values, list) and any(isinstance(each, Mapping) for each in values):
        lines = [pad + as_text(each, depth + 1) for each in values]
        return "[\n" + ",\n".join(lines) + "\n" + " " * depth + "]"
    return json.dumps(values, allow_nan=False)
