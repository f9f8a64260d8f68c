"""An experiment's YAML file: a workload, the contenders with their settings, the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dwmgrad.experiments.runner import Run
from dwmgrad.experiments.workload import Workload
from dwmgrad.experiments.workloads import make_workload
from dwmgrad.glue.errors import UsageError

KEYS = ("workload", "options", "data_dir", "output_dir", "settings", "contenders", "seeds")


@dataclass(frozen=True)
class Experiment:
    """What a file asks for.

    Attributes:
        workload: the task.
        contenders: label in tables: (contender, settings).
        seeds: each contender runs once with each.
        output_dir: where results go.
    """

    workload: Workload
    contenders: dict[str, tuple[str, dict[str, Any]]]
    seeds: tuple[int, ...]
    output_dir: Path

    def runs(self) -> dict[str, list[Run]]:
        """Label: one run per seed."""
        return {
            label: [Run(self.workload, name, settings, seed) for seed in self.seeds]
            for label, (name, settings) in self.contenders.items()
        }


def read_experiment(path: str | Path, **replacements: Any) -> Experiment:
    """Read a file like those of configs/experiments/.

    Its keys: `workload` (a name), `options` (fields of the workload), `data_dir`, `output_dir`,
    `settings` (of all contenders), `contenders` (label: settings, with `contender` among them
    where the label is not its name), `seeds`.

    Args:
        path: the file.
        replacements: values that win over the file's, None for none: `workload`, `data_dir`,
            `model_name_or_path`, `output_dir`, `seeds`, and `contenders`, the labels to keep.

    Raises:
        UsageError: the file cannot be read, or names something that does not exist.
    """
    values = _load(path)
    given = {name: value for name, value in replacements.items() if value is not None}
    for name in ("workload", "data_dir", "output_dir", "seeds"):
        if name in given:
            values[name] = given[name]
    options = dict(_mapping(values, "options", path))
    if "model_name_or_path" in given:
        options["model_name_or_path"] = given["model_name_or_path"]
    for name in ("workload", "contenders"):
        if not values.get(name):
            raise UsageError(f"{path}: {name} is missing")
    workload = make_workload(str(values["workload"]), values.get("data_dir"), **options)
    shared = _mapping(values, "settings", path)
    contenders = {}
    for label, own in _mapping(values, "contenders", path).items():
        if not isinstance(own or {}, Mapping):
            raise UsageError(f"{path}: contenders: {label}: expected lines of `name: value`")
        settings = {**shared, **(own or {})}
        contenders[str(label)] = str(settings.pop("contender", label)), settings
    output_dir = Path(values.get("output_dir") or f"runs/experiments/{workload.name}")
    kept = _keep(contenders, given.get("contenders"))
    for name, settings in kept.values():
        workload.settings(name, settings)
    return Experiment(workload, kept, _seeds(values.get("seeds", [0]), path), output_dir)


def _keep(contenders: dict[str, Any], wanted: Sequence[str] | None) -> dict[str, Any]:
    for label in wanted or ():
        if label not in contenders:
            raise UsageError(f"--contenders {label}: the file has {', '.join(contenders)}")
    return {label: contenders[label] for label in wanted or contenders}


def _seeds(value: Any, path: str | Path) -> tuple[int, ...]:
    seeds = value if isinstance(value, list) else [value]
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise UsageError(f"{path}: seeds {value!r}: expected different whole numbers from 0 on")
    return tuple(seeds)


def _mapping(values: Mapping[str, Any], name: str, path: str | Path) -> Mapping[str, Any]:
    found = values.get(name) or {}
    if not isinstance(found, Mapping):
        raise UsageError(f"{path}: {name}: expected lines of `name: value`, got {found!r}")
    return found


def _load(path: str | Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected lines of `name: value`")
    for name in values:
        if name not in KEYS:
            raise UsageError(f"{path}: unknown {name!r}; it may have {', '.join(KEYS)}")
    return _numbers(values)


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
