"""The loss feed of Lightning and Fabric: every backward pass of theirs is a strategy's.

That of the Trainer, by itself or through `manual_backward(loss)`, and `fabric.backward(loss)`. The
loss is unscaled there, and divided by the number of batches that are accumulated.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from ..gradient_trace import may_be_elsewhere
from ..loss_feed import LIGHTNING, brought
from ..optimizer import DWMGrad
from ..wrappers import innermost, layers
from . import LIGHTNING as MODULES


def attach() -> None:
    """Wraps `Strategy.backward` in those of the modules that are imported, each once."""
    for name in MODULES:
        strategy = getattr(sys.modules.get(name), "Strategy", None)
        if strategy is not None and not getattr(strategy.backward, "feeds_dwmgrad", False):
            strategy.backward = _with_loss(strategy.backward)


def _with_loss(backward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(backward)
    def backward_with_loss(self: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
        optimizers, alone = _concerned(self)
        if not optimizers:
            return backward(self, loss, *args, **kwargs)
        with brought(
            optimizers,
            loss,
            LIGHTNING,
            # after the optimizer, or the module, come the arguments of Tensor.backward()
            gradient=kwargs.get("gradient", args[1] if len(args) > 1 else None),
            alone=alone,
        ):
            return backward(self, loss, *args, **kwargs)

    backward_with_loss.feeds_dwmgrad = True  # type: ignore[attr-defined]
    return backward_with_loss


def _concerned(strategy: Any) -> tuple[list[DWMGrad], bool]:
    """The optimizers that a backward pass may concern, and whether it can be no other's."""
    given = getattr(strategy, "optimizers", None)
    if not given:  # Fabric's strategies do not know them
        return list(DWMGrad.live), False
    found = {id(inner): inner for inner in map(innermost, given)}
    ours = [inner for inner in found.values() if isinstance(inner, DWMGrad)]
    if len(found) != 1 or not ours:
        return ours, False
    partitioned = any(type(each).__module__.startswith("deepspeed") for each in layers(given[0]))
    return ours, partitioned or may_be_elsewhere(ours[0].param_groups)
