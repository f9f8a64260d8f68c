"""The loss feed: whatever trains through Accelerate ends at `Accelerator.backward(loss)`.

The Trainer, its many subclasses and bare loops all call it once per micro-batch, with the loss
unscaled and, under DeepSpeed, before the optimizer's step, which happens inside. So this is the one
place where every loss can be had.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from typing import Any

from accelerate.accelerator import Accelerator  # the package may still be half imported

from ..optimizer import DWMGrad

_ROUTE = "accelerator.backward()"


def attach() -> None:
    """Wraps `Accelerator.backward` and `Accelerator.free_memory`; a second call does nothing.

    The class is wrapped, not an instance: hyper-parameter search makes new ones.
    """
    if getattr(Accelerator.backward, "feeds_dwmgrad", False):
        return
    backward, free_memory = Accelerator.backward, Accelerator.free_memory

    @functools.wraps(backward)
    def backward_with_loss(self: Accelerator, loss: Any, **kwargs: Any) -> Any:
        _feed(self, loss, kwargs)
        return backward(self, loss, **kwargs)

    @functools.wraps(free_memory)
    def free_memory_and_losses(self: Accelerator, *objects: Any) -> Any:
        # auto_find_batch_size leaves the losses of an aborted batch behind
        for optimizer in inside(self._optimizers):
            optimizer.discard_loss()
        return free_memory(self, *objects)

    backward_with_loss.feeds_dwmgrad = True  # type: ignore[attr-defined]
    Accelerator.backward = backward_with_loss
    Accelerator.free_memory = free_memory_and_losses


def inside(optimizers: Iterable[Any]) -> list[DWMGrad]:
    """The DWMGrad optimizers under any number of wrappers."""
    return [inner for inner in map(innermost, optimizers) if isinstance(inner, DWMGrad)]


def innermost(optimizer: Any) -> Any:
    """The optimizer under AcceleratedOptimizer's and DeepSpeed's wrappers."""
    while not isinstance(optimizer, DWMGrad) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _feed(accelerator: Accelerator, loss: Any, backward_arguments: dict[str, Any]) -> None:
    optimizers = inside(accelerator._optimizers)
    if len(optimizers) > 1:
        warnings.warn(
            f"{len(optimizers)} DWMGrad optimizers are prepared by one Accelerator, so backward() "
            "cannot tell whose loss it gets: call observe_loss(loss) on each of them",
            stacklevel=3,
        )
        return
    # Accelerate divides every loss by the accumulation steps, the losses of a short last batch too,
    # so there the mean of the undivided ones is right. The Trainer divides by itself and says so.
    divides = (
        accelerator.gradient_accumulation_steps > 1
        and backward_arguments.get("scale_wrt_gas") is not False
    )
    for optimizer in optimizers:
        optimizer._observe(loss, route=_ROUTE, average=divides)
