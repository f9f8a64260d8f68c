"""How torch.distributed.checkpoint makes an optimizer's state: by a step with gradients of 0.

A rank may do so alone, before the first step, and that step is none: it asks no other rank, and
leaves a loss that waits. From its gradients alone it could not be told: in a warm-up from 0, a rank
without elements has the same.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from ..patching import wrap
from ..wrappers import inside


def attach(host: ModuleType) -> None:
    """Wraps the function that makes the step, which has no public name."""
    if hasattr(host, "_init_optim_state"):
        wrap(host, "_init_optim_state", _told)


def _told(make: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
    ours = inside([optimizer])
    for each in ours:
        each._makes_state = True
    try:
        return make(optimizer, *args, **kwargs)
    finally:
        for each in ours:
            each._makes_state = False
