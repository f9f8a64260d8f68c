"""An experiment's YAML file: a workload, the contenders with their settings, the seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from glue.configs import read_with_base
from glue.errors import UsageError

from experiments.runner import Run
from experiments.workload import Workload
from experiments.workloads import make_workload


class KindOfValue(NamedTuple):
    """A value's kind: what a message says, and whether a value is of it."""

    expected: str
    fits: Callable[[Any], bool]


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_seed(value: Any) -> bool:
    return type(value) is int and value >= 0


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and all(map(fits, value)) and len(set(value)) == len(value) > 0
    )


TEXT = KindOfValue("text", lambda value: isinstance(value, str))
LINES = KindOfValue("lines of `name: value`", lambda value: isinstance(value, Mapping))
NAMES = KindOfValue("a list of different names", _list_of(TEXT.fits))
RATES = KindOfValue(
    "`all`, or a list of rates", lambda value: value == "all" or _list_of(_is_rate)(value)
)
SEEDS = KindOfValue("different whole numbers from 0 on", _list_of(_is_seed))

REQUIRED = object()
Keys = Mapping[str, tuple[KindOfValue, Any]]
"""What a part of a file may have: each name's kind and default, or `REQUIRED`."""


def checked(values: Mapping[str, Any], keys: Keys, where: str | Path) -> dict[str, Any]:
    """A value for each of `keys`; a UsageError if a name or a value is wrong, or a name missing."""
    for name in values:
        if name not in keys:
            raise UsageError(f"{where}: unknown {name!r}; it may have {', '.join(keys)}")
    found = {}
    for name, (kind, default) in keys.items():
        value = _as_list(kind, values.get(name))
        if value in (None, "", {}, default):
            value = default
            if default is REQUIRED:
                raise UsageError(f"{where}: {name} is missing")
        elif not kind.fits(value):
            raise UsageError(f"{where}: {name} {value!r:.300}: expected {kind.expected}")
        found[name] = value
    return found


def _as_list(kind: KindOfValue, value: Any) -> Any:
    """One seed is a list of one."""
    return [value] if kind is SEEDS and _is_seed(value) else value


def load(path: str | Path, keys: Keys, **given: Any) -> dict[str, Any]:
    """A YAML file's values, see `checked`; 1e-3 is a number in it, and what is `given` wins."""
    values = _with_numbers(read_with_base(path))
    given = {name: _as_list(keys[name][0], v) for name, v in given.items() if name in keys}
    for name, value in given.items():
        kind = keys[name][0]
        if not kind.fits(value):
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            raise UsageError(f"--{name} {shown}: expected {kind.expected}")
    return checked(values | given, keys, path)


def _with_numbers(value: Any) -> Any:
    """YAML takes 1e-3, without a dot, for text; here it is a number."""
    if isinstance(value, dict):
        return {name: _with_numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_numbers(each) for each in value]
    number = isinstance(value, str) and re.fullmatch(
        r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", value, re.I
    )
    return float(value) if number else value


def workload_of(values: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Workload, dict]:
    """The workload that a file asks for, and its options without folders."""
    options = dict(values["options"])
    for name in options.keys() & {"name", "data_dir"}:
        raise UsageError(f"workload {values['workload']}: {name} is none of its options")
    if model := given.get("model_name_or_path", options.get("model_name_or_path")):
        options["model_name_or_path"] = model
    data_dir = given.get("data_dir", values.get("data_dir"))
    workload = make_workload(values["workload"], data_dir, **options)
    if model:
        options["model_name_or_path"] = Path(str(model)).name
    return workload, options


def keep(contenders: Iterable[str], wanted: Sequence[str] | None) -> list[str]:
    """The contenders that --contenders names; all without it."""
    for label in wanted or ():
        if label not in contenders:
            raise UsageError(f"--contenders {label}: the file has {', '.join(contenders)}")
    return list(wanted or contenders)


KINDS = ("experiment", "ablation")
_KEYS: Keys = {
    "workload": (TEXT, REQUIRED),
    "title": (TEXT, None),
    "kind": (KindOfValue(" or ".join(KINDS), lambda value: value in KINDS), KINDS[0]),
    "options": (LINES, {}),
    "data_dir": (TEXT, None),
    "output_dir": (TEXT, None),
    "settings": (LINES, {}),
    "contenders": (LINES, REQUIRED),
    "seeds": (SEEDS, [0]),
}


@dataclass(frozen=True)
class Experiment:
    """What a file asks for.

    Attributes:
        workload: the task.
        contenders: label in tables: (contender, settings).
        seeds: each contender runs once with each.
        output_dir: where results go.
        title: as in reports.
        kind: one of `KINDS`, for reports: optimizers side by side, or forms of one.
    """

    workload: Workload
    contenders: dict[str, tuple[str, dict[str, Any]]]
    seeds: tuple[int, ...]
    output_dir: Path
    title: str
    kind: str

    def runs(self) -> dict[str, list[Run]]:
        """Label: one run per seed."""
        return {
            label: [Run(self.workload, name, settings, seed) for seed in self.seeds]
            for label, (name, settings) in self.contenders.items()
        }


def read_experiment(path: str | Path, **replacements: Any) -> Experiment:
    """Read a file like those of configs/experiments/; a UsageError says what is wrong with it.

    Its keys: `base` (a file beside it, which has what it does not say), `workload` (a name),
    `title`, `kind`, `options` (fields of the workload), `data_dir`, `output_dir`, `settings` (of
    all contenders), `contenders` (label: settings, with `contender` among them where the label is
    not its name), `seeds`.

    Replacements win over the file's values, None for none: `workload`, `data_dir`,
    `model_name_or_path`, `output_dir`, `seeds`, and `contenders`, the labels to keep.
    """
    given = {name: value for name, value in replacements.items() if value is not None}
    labels = given.pop("contenders", None)
    values = load(path, _KEYS, **given)
    workload, _ = workload_of(values, given)
    every = {str(label): own for label, own in values["contenders"].items()}
    every = checked(every, dict.fromkeys(every, (LINES, {})), f"{path}: contenders")
    contenders = {}
    for label in keep(every, labels):
        settings = {**values["settings"], **every[label]}
        contenders[label] = str(settings.pop("contender", label)), settings
        workload.settings(*contenders[label])
    title = values["title"] or workload.name
    return Experiment(
        workload=workload,
        contenders=contenders,
        seeds=tuple(values["seeds"]),
        output_dir=Path(values["output_dir"] or f"runs/experiments/{workload.name}"),
        title=f"{title}: {workload.name}" if "workload" in given else title,
        kind=values["kind"],
    )
