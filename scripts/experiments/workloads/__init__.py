"""The workloads by name; a workload's libraries are imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from glue.errors import UsageError

from experiments.workload import Workload

_MAKERS = {
    "rosenbrock": ("rosenbrock", "Rosenbrock"),
    "cora": ("cora", "Cora"),
    "cifar10": ("cifar10", "Cifar10"),
    "cifar10-short": ("cifar10", "short"),
    "cifar10-brief": ("cifar10", "brief"),
    "tiny-sst2": ("glue", "tiny_sst2"),
    "digits": ("digits", "Sounds"),
    "digits-brief": ("digits", "brief"),
    "urbansound8k": ("digits", "urbansound8k"),
    "language": ("language", "Language"),
}
_GLUE = [f"glue-{t}{k}" for t in ("cola", "sst2", "mrpc", "stsb", "rte") for k in ("", "-lora")]
WORKLOADS = (*_MAKERS, *_GLUE)


def make_workload(name: str, data_dir: str | None = None, **options: Any) -> Workload:
    """The workload called `name`.

    Args:
        name: one of `WORKLOADS`.
        data_dir: the folder with its data, where it needs one.
        options: other values for fields of the workload: `steps`, `batch_size`, ...

    Raises:
        UsageError: no such workload, or no such field.
    """
    if name not in WORKLOADS:
        near = difflib.get_close_matches(name, WORKLOADS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"workload {name}: no such one.{hint} Choose from: {', '.join(WORKLOADS)}")
    try:
        if name in _GLUE:
            glue = importlib.import_module(f"{__name__}.glue")
            return glue.pretrained(name, data_dir, **options)
        module, maker = _MAKERS[name]
        made = getattr(importlib.import_module(f"{__name__}.{module}"), maker)
        return made(data_dir=data_dir, **options)
    except TypeError as error:
        raise UsageError(f"workload {name}: {error}") from error
