"""From what a host calls its optimizer to the DWMGrad inside; no host is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .optimizer import DWMGrad

_DEEPEST = 32
"""Wrappers around one optimizer, at most; three are known to occur (Accelerate over DeepSpeed)."""


def layers(optimizer: Any) -> list[Any]:
    """The optimizer, what it wraps as `.optimizer`, and so on to a DWMGrad or to the last one.

    It ends whatever it is given. Only attributes that exist count: a mock makes up any that it is
    asked for.
    """
    found = [optimizer]
    while len(found) < _DEEPEST and not _is_dwmgrad(found[-1]):
        inner = _wrapped(found[-1])
        if inner is None or any(inner is outer for outer in found):
            break
        found.append(inner)
    return found


def innermost(optimizer: Any) -> Any:
    """The DWMGrad under Accelerate's and DeepSpeed's wrappers; else the last thing they wrap."""
    return layers(optimizer)[-1]


def dwmgrad_in(optimizer: Any) -> DWMGrad | None:
    """The DWMGrad under any number of wrappers, if there is one."""
    inner = innermost(optimizer)
    return inner if _is_dwmgrad(inner) else None


def inside(optimizers: Iterable[Any]) -> list[DWMGrad]:
    """The DWMGrad optimizers under any number of wrappers, each once."""
    found = map(dwmgrad_in, optimizers)
    return list({id(inner): inner for inner in found if inner is not None}.values())


def _is_dwmgrad(thing: Any) -> bool:
    return issubclass(type(thing), DWMGrad)  # isinstance() would believe a mock


def _wrapped(optimizer: Any) -> Any:
    try:
        own = optimizer.__dict__
    except Exception:  # whatever somebody else's object raises
        own = {}
    try:
        if "optimizer" in own:
            return own["optimizer"]
        if any("optimizer" in vars(kind) for kind in type(optimizer).__mro__):
            return optimizer.optimizer  # a property, or a slot
    except Exception:
        pass
    return None
