"""The committed results, read and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue.errors import UsageError

_COMMON = {
    "workload": str, "metric": str, "higher_is_better": bool, "steps": int, "machine": list,
    "versions": list,
}  # fmt: skip
_KEYS: dict[str, dict[str, Any]] = {
    "comparison": {**_COMMON, "plan": dict, "contenders": dict, "complete": bool},
    "experiment": {**_COMMON, "results": dict},
    "ablation": {**_COMMON, "results": dict},
}
_NUMBERS = ("score", "train_loss", "seconds", "steps")


@dataclass(frozen=True)
class Result:
    """One file.

    Attributes:
        kind: `comparison`, `experiment` or `ablation`.
        name: the rest of the file's name.
        data: what it holds.
    """

    kind: str
    name: str
    data: Mapping[str, Any]

    @property
    def title(self) -> str:
        """As a heading."""
        return str(self.data.get("title") or self.data["workload"])

    @property
    def file(self) -> str:
        """Its name in the folder of results."""
        return f"{self.kind}-{self.name}.json"

    @property
    def runs(self) -> list[Mapping[str, Any]]:
        """All runs, each once."""
        if self.kind != "comparison":
            return [run for entry in self.data["results"].values() for run in entry["runs"]]
        found: dict[tuple, Mapping[str, Any]] = {}
        for name, entry in self.data["contenders"].items():
            for part in ("trials", "reach", "seeds", "shared"):
                for run in entry.get(part) or ():
                    found[name, run["lr"], run["seed"]] = run
        return list(found.values())

    @property
    def complete(self) -> bool:
        """Whether all of the plan was run."""
        if self.kind == "comparison":
            return bool(self.data["complete"])
        empty = any(not entry["runs"] for entry in self.data["results"].values())
        return not self.data.get("failures") and not empty


def read_results(folder: Path) -> list[Result]:
    """All results of a folder, by kind and name.

    Raises:
        UsageError: no such folder, or a file in it that is no result; the message names it.
    """
    if not folder.is_dir():
        raise UsageError(f"--results {folder}: no such folder; it should hold comparison-*.json")
    return [
        Result(kind, path.stem.removeprefix(f"{kind}-"), read_result(path, kind))
        for kind in _KEYS
        for path in sorted(folder.glob(f"{kind}-*.json"))
    ]


def read_result(path: Path, kind: str) -> dict[str, Any]:
    """One file's values.

    Raises:
        UsageError: it cannot be read, or is none of this kind; the message names it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); make it again") from error
    if not isinstance(data, dict) or data.get("kind") != kind:
        raise UsageError(f"{path}: not a file of kind {kind}; make it again or rename it")
    for name, of in _KEYS[kind].items():
        if not isinstance(data.get(name), of):
            raise UsageError(f"{path}: {name} is missing or no {of.__name__}; make it again")
    for name in ("machine", "versions"):
        if not all(isinstance(record, dict) for record in data[name]):
            raise UsageError(f"{path}: {name}: expected records; make it again")
    if kind == "comparison":
        _comparison(data, path)
    else:
        for label, entry in data["results"].items():
            settings = entry.get("settings") if isinstance(entry, dict) else None
            if not isinstance(settings, dict) or not _is_number(settings.get("lr")):
                raise UsageError(f"{path}: results: {label}: no settings with lr; make it again")
            _runs(entry.get("runs"), f"results: {label}: runs", path)
    return data


def _comparison(data: Mapping[str, Any], path: Path) -> None:
    plan = data["plan"]
    for name, of in (("seeds", list), ("tuning", dict), ("target", (int, float)),
                     ("tolerance", (int, float))):  # fmt: skip
        if not isinstance(plan.get(name), of):
            raise UsageError(f"{path}: plan: {name} is missing or of a wrong kind; make it again")
    for name, keys in (("shared", ("lr", "seeds")), ("search", ("low", "high")), ("reach", ())):
        given = plan.get(name) or {}
        if not isinstance(given, dict) or (given and not all(key in given for key in keys)):
            raise UsageError(f"{path}: plan: {name} {given!r}: expected {' and '.join(keys)}")
    for name, entry in data["contenders"].items():
        if not isinstance(entry, dict):
            raise UsageError(f"{path}: contenders: {name}: not a mapping; make it again")
        for part in ("trials", "reach", "seeds", "shared"):
            _runs(entry.get(part) or [], f"contenders: {name}: {part}", path, "lr")


def _runs(runs: Any, where: str, path: Path, *more: str) -> None:
    if not isinstance(runs, list):
        raise UsageError(f"{path}: {where}: not a list of runs; make it again")
    for run in runs:
        if not isinstance(run, dict):
            raise UsageError(f"{path}: {where}: {run!r} is no run; make it again")
        for name in (*_NUMBERS, "seed", "diverged", *more):
            if name not in run:
                raise UsageError(f"{path}: {where}: a run without {name}; make it again")
        for name in (*_NUMBERS, *more):
            value = run[name]
            empty = value is None and name in ("score", "train_loss")
            if not empty and (not _is_number(value) or (name == "lr" and value <= 0)):
                raise UsageError(f"{path}: {where}: {name} {value!r}; make it again")
        for name in ("losses", "scores", "windows", "path"):
            if not _is_curve(run.get(name, [])):
                raise UsageError(f"{path}: {where}: {name}: expected [step, value] points")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_curve(points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(point, Sequence) and len(point) == 2 and all(map(_is_number, point))
        for point in points
    )
