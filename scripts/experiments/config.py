"""An experiment's YAML file: a workload, the contenders with their settings, the seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glue.configs import read_settings
from glue.errors import UsageError

from experiments.runner import Run
from experiments.workload import Workload
from experiments.workloads import make_workload

KEYS = (
    "workload", "title", "kind", "options", "data_dir", "output_dir", "settings", "contenders",
    "seeds",
)  # fmt: skip
KINDS = ("experiment", "ablation")


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
    """Read a file like those of configs/experiments/.

    Its keys: `workload` (a name), `title`, `kind`, `options` (fields of the workload), `data_dir`,
    `output_dir`, `settings` (of all contenders), `contenders` (label: settings, with `contender`
    among them where the label is not its name), `seeds`.

    Args:
        path: the file.
        replacements: values that win over the file's, None for none: `workload`, `data_dir`,
            `model_name_or_path`, `output_dir`, `seeds`, and `contenders`, the labels to keep.

    Raises:
        UsageError: the file cannot be read, or names something that does not exist.
    """
    values = load(path, KEYS)
    given = {name: value for name, value in replacements.items() if value is not None}
    for name in ("workload", "data_dir", "output_dir", "seeds"):
        if name in given:
            values[name] = given[name]
    require(values, ("workload", "contenders"), path)
    options = dict(mapping(values, "options", path))
    if "model_name_or_path" in given:
        options["model_name_or_path"] = given["model_name_or_path"]
    workload = make_workload(str(values["workload"]), values.get("data_dir"), **options)
    kind = values.get("kind", "experiment")
    if kind not in KINDS:
        raise UsageError(f"{path}: kind {kind!r}: choose from {', '.join(KINDS)}")
    shared = mapping(values, "settings", path)
    contenders = {}
    for label, own in mapping(values, "contenders", path).items():
        if not isinstance(own or {}, Mapping):
            raise UsageError(f"{path}: contenders: {label}: expected lines of `name: value`")
        settings = {**shared, **(own or {})}
        contenders[str(label)] = str(settings.pop("contender", label)), settings
    output_dir = Path(values.get("output_dir") or f"runs/experiments/{workload.name}")
    kept = keep(contenders, given.get("contenders"))
    for name, settings in kept.values():
        workload.settings(name, settings)
    seeds = whole_numbers(values.get("seeds", [0]), "seeds", path)
    title = str(values.get("title") or workload.name)
    if "workload" in given:
        title += f": {workload.name}"
    return Experiment(workload, kept, seeds, output_dir, title, kind)


def keep(contenders: Mapping[str, Any], wanted: Sequence[str] | None) -> dict[str, Any]:
    """The contenders that --contenders names; all without it."""
    for label in wanted or ():
        if label not in contenders:
            raise UsageError(f"--contenders {label}: the file has {', '.join(contenders)}")
    return {label: contenders[label] for label in wanted or contenders}


def whole_numbers(value: Any, name: str, path: str | Path) -> tuple[int, ...]:
    """One or more different numbers from 0 on, as seeds are."""
    numbers = value if isinstance(value, list) else [value]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise UsageError(f"{path}: {name} {value!r}: expected different whole numbers from 0 on")
    return tuple(numbers)


def mapping(
    values: Mapping[str, Any], name: str, path: str | Path, keys: Sequence[str] | None = None
) -> Mapping[str, Any]:
    """What `values` has under `name`; no other names in it than `keys`."""
    found = values.get(name) or {}
    if not isinstance(found, Mapping):
        raise UsageError(f"{path}: {name}: expected lines of `name: value`, got {found!r}")
    _known(found, found if keys is None else keys, f"{path}: {name}")
    return found


def require(values: Mapping[str, Any], names: Sequence[str], where: str | Path) -> None:
    """Each of `names` has a value."""
    for name in names:
        if values.get(name) in (None, "", [], {}):
            raise UsageError(f"{where}: {name} is missing")


def load(path: str | Path, keys: Sequence[str]) -> dict[str, Any]:
    """A YAML file of `name: value`, the names among `keys`; 1e-3 is a number in it."""
    values = read_settings(path)
    _known(values, keys, str(path))
    return _numbers(values)


def _known(values: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    for name in values:
        if name not in keys:
            raise UsageError(f"{where}: unknown {name!r}; it may have {', '.join(keys)}")


def _numbers(value: Any) -> Any:
    """YAML takes 1e-3, without a dot, for text; here it is a number."""
    if isinstance(value, dict):
        return {name: _numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and value:
        try:
            return float(value)
        except ValueError:
            return value
    return value
