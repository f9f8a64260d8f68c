"""Finds the DWMGrad inside what a host calls its optimizer; imports neither."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_DEEPEST = 32
"""Wrappers around one optimizer, at most; three are known to occur (Accelerate over DeepSpeed)."""


def layers(optimizer: Any) -> list[Any]:
    """The optimizer, what it wraps as `.optimizer`, and so on to a DWMGrad or to the last one.

    It ends whatever it is given. Only attributes that exist count: a mock makes up any that it is
    asked for.
    """
    found = [optimizer]
    while len(found) < _DEEPEST and not _is_dwmgrad(found[-1]):
        inner = wrapped(found[-1])
        if inner is None or any(inner is outer for outer in found):
            break
        found.append(inner)
    return found


def innermost(optimizer: Any) -> Any:
    """The DWMGrad under Accelerate's and DeepSpeed's wrappers; else the last thing they wrap."""
    return layers(optimizer)[-1]


def dwmgrad_in(optimizer: Any) -> Any:
    """The DWMGrad under any number of wrappers; None if there is none."""
    inner = innermost(optimizer)
    return inner if _is_dwmgrad(inner) else None


def inside(optimizers: Iterable[Any]) -> list[Any]:
    """The DWMGrad optimizers under any number of wrappers, each once."""
    found = map(dwmgrad_in, optimizers)
    return list({id(inner): inner for inner in found if inner is not None}.values())


def is_partitioned(optimizer: Any) -> bool:
    """Whether DeepSpeed wraps it, and has cut its parameters into flat pieces."""
    return any(type(each).__module__.startswith("deepspeed") for each in layers(optimizer))


def _is_dwmgrad(thing: Any) -> bool:
    # by its type's bases: a mock has whatever it is asked for, and the class is not imported here
    return any(
        kind.__name__ == "DWMGrad" and kind.__module__ == "dwmgrad.optimizer"
        for kind in type(thing).__mro__
    )


def wrapped(optimizer: Any) -> Any:
    """What it holds as `.optimizer`; None without one."""
    try:
        if "optimizer" in getattr(optimizer, "__dict__", ()):
            return optimizer.__dict__["optimizer"]
        if any("optimizer" in vars(kind) for kind in type(optimizer).__mro__):
            return optimizer.optimizer  # a property, or a slot
    except Exception:  # whatever somebody else's object raises
        pass
    return None
