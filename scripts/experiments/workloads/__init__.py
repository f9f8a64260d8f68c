"""The workloads by name; a workload's libraries are imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import Any

from glue.errors import UsageError, choose, one_line

from experiments.workload import Workload

_COSINE = {"schedule": "cosine", "warmup": 0.05, "weight_decay": 1e-4}
_LINEAR = {"schedule": "linear", "warmup": 0.05, "weight_decay": 0.01}
_BRIEF = {"width": 8, "steps": 6 * 43, "evaluations": 6}
_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rosenbrock": ("rosenbrock.Rosenbrock", {}),
    "cora": ("cora.Cora", {}),
    "cifar10": ("cifar10.Cifar10", {}),
    # for a CPU: ResNet-20 on 10,000 images, 12 epochs
    "cifar10-short": (
        "cifar10.Cifar10",
        dict(depth=20, train_images=10_000, test_images=5_000, steps=12 * 79, evaluations=4)
        | dict(defaults=_COSINE),
    ),
    # for a sweep: ResNet-8 on 2,000 images, 3 epochs
    "cifar10-brief": (
        "cifar10.Cifar10",
        dict(depth=8, train_images=2_000, test_images=1_000, steps=3 * 63, evaluations=3)
        | dict(defaults=_COSINE, batch_size=32),
    ),
    # the package's own sample
    "tiny-sst2": (
        "glue.Glue",
        dict(task="sst2", metric="accuracy", train_examples=20_000, steps=313, evaluations=4)
        | dict(defaults=_LINEAR, batch_size=64, data_dir=None),
    ),
    "digits": ("digits.Sounds", {}),
    # for a sweep: half the width, 6 epochs
    "digits-brief": ("digits.Sounds", _BRIEF),
    # a share of the batches with wrong labels, for docs/plans/loss-guard.md
    **{
        f"digits-broken-{share}": ("digits.Sounds", {**_BRIEF, "broken": share / 100})
        for share in (5, 10)
    },
    # the paper's audio data: 10 classes of city sounds, 4 s each, 20 epochs
    "urbansound8k": (
        "digits.Sounds",
        dict(source="urbansound8k", seconds=4.0, bands=64, width=32, steps=20 * 124),
    ),
    "language": ("language.Language", {}),
    "sentences": ("sentences.Sentences", {}),
    "sentences-lora": ("sentences.Sentences", dict(lora_r=8)),
    # small networks from random weights, which need no files
    "small-regression": ("small.Small", dict(task="regression", steps=400, batch_size=32)),
    "small-factors": ("small.Small", dict(task="factors", steps=600, batch_size=128)),
    "small-characters": (
        "small.Small",
        dict(task="characters", metric="accuracy", steps=300, batch_size=16),
    ),
}
"""Name: its class, and what it has in place of the class's values."""
_GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "rte", "mnli", "qqp")
_GLUE = [f"glue-{task}{form}" for task in _GLUE_TASKS for form in ("", "-lora")]
_GLUE += [f"glue-mrpc-broken-{share}" for share in (5, 10)]
WORKLOADS = (*_FORMS, *_GLUE)


def make_workload(name: str, data_dir: str | None = None, **options: Any) -> Workload:
    """The workload called `name`; a UsageError if there is none, or no field of an option's name.

    Args:
        name: one of `WORKLOADS`.
        data_dir: the folder with its data, where it needs one.
        options: other values for fields of the workload: `steps`, `batch_size`, ...
    """
    choose("workload", name, WORKLOADS)
    maker, values = _FORMS.get(name, ("glue.pretrained", {}))
    module, _, attribute = maker.partition(".")
    make = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    for field in ("steps", "batch_size"):
        value = options.get(field, 1)
        if type(value) is not int or value < 1:
            raise UsageError(
                f"workload {name}: {field} {value!r}: must be a whole number, at least 1"
            )
    with one_line(TypeError, of=f"workload {name}: "):
        return make(**{"name": name, "data_dir": data_dir, **values, **options})
