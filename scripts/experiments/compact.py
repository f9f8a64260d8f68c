"""Results as they are kept in the repository: one small JSON for many runs, without any folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from glue.errors import UsageError

from experiments.comparison import WITHOUT, Comparison, best_rate, told
from experiments.config import Experiment
from experiments.contenders import get_contender
from experiments.runner import Failure, made
from experiments.workload import Workload

Result = Mapping[str, Any]

CURVES = {"scores": "score", "losses": "loss", "windows": "window"}
"""Name in a record: name in a run's history."""

_NOT_OF_RUNS = ("title", "contenders", "rates", "seeds", "final", "chosen_on")
"""What a plan may say otherwise without any run's being another."""
_NOTHING: Result = {"runs": [], "final": [], "best_lr": None}
"""What a record has of a contender that it does not have."""


def comparison_record(
    comparison: Comparison,
    failures: Sequence[Failure],
    command: str,
    kept: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What there is of a comparison; contenders without a run are left out.

    What `kept`, an older record, has more of what the plan asks for stays: the folder of its runs
    may be gone, or another one. Runs of a preset that was changed since are no runs of the plan;
    those of an older rule stay, marked by it, until there is one of today's.
    """
    plan, contenders, found = comparison.values, dict[str, Any](), list[Result]()
    older = _of_plan(kept["contenders"], plan) if kept else {}
    todays = {name: old for name, old in older.items() if _is_todays(name, old)}
    first, best = dict[str, list[Result]](), dict[str, Any]()
    stage = comparison.rate_runs()
    for name in plan["contenders"]:
        results = made(stage.get(name, []), comparison.output_dir)
        found += results
        runs: list[Result] = [{**run_record(r), "by": told(r, plan["by"])} for r in results]
        old = todays.get(name, _NOTHING)
        first[name], best[name] = _united(old["runs"], runs), old["best_lr"]
        if has_all(first[name], get_contender(name).rateless, plan):
            values = [(run["lr"], run["by"]) for run in first[name]]
            best[name] = best_rate(values, plan["by"], comparison.workload.higher_is_better)
    stage = comparison.final_runs(best)
    for name in plan["contenders"]:
        results = made(stage.get(name, []), comparison.output_dir)
        found += results
        final = _united(todays.get(name, _NOTHING)["final"], [*map(run_record, results)])
        if first[name] or final:
            own = get_contender(name)
            contenders[name] = {
                "title": own.title,
                "rule": own.rule,
                "defaults": dict(own.defaults),
                "rateless": own.rateless,
                "best_lr": best[name],
                "runs": first[name],
                "final": [run for run in final if run["lr"] == best[name]],
            }
        elif name in older:
            contenders[name] = older[name]
    record = head(comparison.workload, found, command)
    return {
        "kind": "comparison",
        "title": plan["title"],
        **(record | _both(kept, record) if kept else record),
        "plan": dict(plan),
        "contenders": contenders,
        "complete": is_complete(contenders, plan),
        "failures": _told(failures),
    }


def _of_plan(contenders: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Of an older record's contenders what the plan asks for, with presets that are today's."""
    found = {}
    for name, old in contenders.items():
        if name in plan["contenders"] and old["defaults"] == get_contender(name).defaults:
            rates = [WITHOUT] if old["rateless"] else plan["rates"]
            runs = [r for r in old["runs"] if r["lr"] in rates and r["seed"] in plan["seeds"]]
            best = old["best_lr"] if old["best_lr"] in rates else None
            seeds = plan["final"]["seeds"] if best else ()
            final = [run for run in old["final"] if run["seed"] in seeds]
            if runs or final:
                found[name] = {**old, "best_lr": best, "runs": runs, "final": final}
    return found


def _is_todays(name: str, old: Mapping[str, Any]) -> bool:
    """Whether a contender's runs in an older record have the rule of today."""
    return old["rule"] == get_contender(name).rule


def _united(old: Sequence[Result], new: Sequence[Result]) -> list[Result]:
    """Both's runs; of two of one rate and seed the new one."""
    runs = {(run["lr"], run["seed"]): run for run in (*old, *new)}
    return [runs[each] for each in sorted(runs)]


def is_complete(contenders: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether a record has all that its plan asks for."""
    new = len(plan["final"]["seeds"])
    found = {name: contenders.get(name) for name in plan["contenders"]}
    return all(
        own
        and has_all(own["runs"], own["rateless"], plan)
        and len(own["final"]) == (0 if own["best_lr"] is None else new)  # all rates may diverge
        and _is_todays(name, own)
        for name, own in found.items()
    )


def has_all(runs: Sequence[Result], rateless: bool, plan: Mapping[str, Any]) -> bool:
    """Whether these are all runs of a contender's first stage."""
    return len(runs) == (1 if rateless else len(plan["rates"])) * len(plan["seeds"])


def check_same_plan(kept: Mapping[str, Any], comparison: Comparison) -> None:
    """Raise a UsageError, which names the first difference, if an older record has another plan."""
    now = {"plan": comparison.values, "description": comparison.workload.description()}
    for part, values in now.items():
        old, new = dict(kept[part]), json.loads(json.dumps(values))
        if part == "plan":
            old, new = (  # records without a second stage once had nothing there
                {**p, "final.options": (p.get("final") or {}).get("options", {})}
                for p in (old, new)
            )
        for name in {**old, **new}:
            if name not in _NOT_OF_RUNS and old.get(name) != new.get(name):
                raise UsageError(
                    f"its {part} has {name} {old.get(name)!r}, the file asks for "
                    f"{new.get(name)!r}: give another --output"
                )


def _both(kept: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Where the runs of either were made."""
    return {part: _distinct([*kept[part], *record[part]]) for part in ("machine", "versions")}


def experiment_record(
    experiment: Experiment, failures: Sequence[Failure], command: str
) -> dict[str, Any]:
    """What there is of an experiment."""
    found = {label: made(runs, experiment.output_dir) for label, runs in experiment.runs().items()}
    return {
        "kind": experiment.kind,
        "title": experiment.title,
        **head(experiment.workload, sum(found.values(), []), command),
        "results": {
            label: {
                "contender": experiment.contenders[label][0],
                "settings": experiment.workload.settings(*experiment.contenders[label]),
                "runs": [run_record(each, whole=True) for each in some],
            }
            for label, some in found.items()
        },
        "failures": _told(failures),
    }


def with_others(record: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's `record` with what `kept`, an older one, has of other contenders, seeds."""
    results = {**kept["results"], **record["results"]}
    for label, own in record["results"].items():
        old = kept["results"].get(label)
        if old and old["settings"] == own["settings"]:
            results[label] = {**own, "runs": _united(old["runs"], own["runs"])}
    return {**record, **_both(kept, record), "results": results}


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


def run_record(result: Result, whole: bool = False) -> dict[str, Any]:
    """A run with its scores; the `whole` one with all `CURVES` and what only some runs have."""
    curves = {
        name: [[p["step"], _short(p[key])] for p in result["history"] if key in p]
        for name, key in CURVES.items()
    }
    run = {
        "lr": result["settings"]["lr"],
        "seed": result["seed"],
        "score": result["score"],
        "diverged": result["diverged"],
        "train_loss": _short(result["train_loss"]),
        "steps": result["steps"],
        "seconds": _short(result["seconds"]),
        "on": place(result.get("machine")),
        "scores": curves["scores"],
    }
    if not whole:
        return run
    more = {name: _short(result.get(name)) for name in ("increases", "signal_noise", "skipped")}
    path = [[_short(x, 6) for x in point] for point in result.get("path", ())]
    optional = {"windows": curves["windows"], **more, "path": path}
    found = {name: value for name, value in optional.items() if value not in (None, [])}
    return {**run, "losses": curves["losses"], **found}


def place(machine: Mapping[str, Any] | None) -> str | None:
    """What computed: the accelerator, else the processor; None where that was not recorded."""
    return (machine["accelerator"] or machine["processor"]) if machine else None


def _short(value: Any, digits: int = 5) -> Any:
    """To so many significant digits; what is no float stays."""
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _told(failures: Sequence[Failure]) -> list[dict[str, str]]:
    return [{"run": str(each.run), "error": without_folders(each.error)} for each in failures]


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
