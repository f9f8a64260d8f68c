"""The loss feed: whatever trains through Accelerate ends at `Accelerator.backward(loss)`.

The Trainer, its many subclasses and bare loops all call it once per micro-batch, with the loss
unscaled and, under DeepSpeed, before the optimizer's step, which happens inside. So this is the one
place where every loss can be had.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from ..loss_feed import BACKWARD
from ..optimizer import DWMGrad
from ..wrappers import innermost, inside

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

__all__ = ["attach", "innermost", "inside"]


def attach() -> None:
    """Wraps `backward`, `prepare` and `free_memory` of Accelerator; a second call does nothing.

    The class is wrapped, not an instance: hyper-parameter search makes new ones.
    """
    # Here, so that this module can be imported first: its own import must not attach it half made.
    from accelerate.accelerator import Accelerator
    from accelerate.utils import DistributedType

    if getattr(Accelerator.backward, "feeds_dwmgrad", False):
        return
    backward, free_memory = Accelerator.backward, Accelerator.free_memory
    prepare = Accelerator.prepare

    @functools.wraps(prepare)
    def prepare_and_check(self: Accelerator, *objects: Any, **kwargs: Any) -> Any:
        given = inside(o for o in objects if isinstance(o, Optimizer))  # a scheduler has one, too
        if given and self.distributed_type == DistributedType.MEGATRON_LM:
            raise RuntimeError("Megatron-LM builds its own optimizer: DWMGrad cannot be used there")
        if given and self.distributed_type == DistributedType.DEEPSPEED:
            _refuse_replacement(self.state.deepspeed_plugin.deepspeed_config)
        prepared = prepare(self, *objects, **kwargs)
        if given and not inside(self._optimizers):
            raise RuntimeError("Accelerate put another optimizer in DWMGrad's place")
        return prepared

    @functools.wraps(backward)
    def backward_with_loss(self: Accelerator, loss: Any, **kwargs: Any) -> Any:
        optimizers = _feed(self, loss, kwargs)
        try:
            result = backward(self, loss, **kwargs)
        except BaseException:  # out of memory, say: the loss goes with its batch
            for optimizer in optimizers:
                optimizer.discard_loss()
            raise
        if self.distributed_type == DistributedType.DEEPSPEED and self.sync_gradients:
            # DeepSpeed has stepped by now; a loss that is still open belongs to an overflow
            for optimizer in optimizers:
                optimizer.discard_loss()
        return result

    @functools.wraps(free_memory)
    def free_memory_and_losses(self: Accelerator, *objects: Any) -> Any:
        # auto_find_batch_size leaves the losses of an aborted batch behind
        for optimizer in inside(self._optimizers):
            optimizer.discard_loss()
        return free_memory(self, *objects)

    backward_with_loss.feeds_dwmgrad = True  # type: ignore[attr-defined]
    Accelerator.backward = backward_with_loss
    Accelerator.free_memory = free_memory_and_losses
    Accelerator.prepare = prepare_and_check


def _refuse_replacement(config: dict[str, Any]) -> None:
    """Accelerate takes DeepSpeedCPUAdam for an off-loaded optimizer, after minutes of building it.

    Raises:
        RuntimeError: if it would, with this configuration of DeepSpeed.
    """
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    if offload.get("device", "none") != "none" and config.get("zero_force_ds_cpu_optimizer", True):
        raise RuntimeError(
            "with the optimizer off-loaded, Accelerate would put DeepSpeedCPUAdam in DWMGrad's "
            'place: set "zero_force_ds_cpu_optimizer": false in DeepSpeed\'s configuration (a JSON '
            "file of its own, which an accelerate configuration names as deepspeed_config_file)"
        )


def _feed(accelerator: Accelerator, loss: Any, backward_arguments: dict[str, Any]) -> list[DWMGrad]:
    """Hands the loss over; returns the optimizers that got it."""
    optimizers = inside(accelerator._optimizers)
    if optimizers and len({id(innermost(o)) for o in accelerator._optimizers}) > 1:
        warnings.warn(
            f"{len(accelerator._optimizers)} optimizers are prepared by one Accelerator, so "
            "backward() cannot tell whose loss it gets: call observe_loss(loss) on each DWMGrad",
            stacklevel=3,
        )
        return []
    # Accelerate divides every loss by the accumulation steps, the losses of a short last batch too,
    # so there the mean of the undivided ones is right. The Trainer divides by itself and says so.
    divides = (
        accelerator.gradient_accumulation_steps > 1
        and backward_arguments.get("scale_wrt_gas") is not False
    )
    for optimizer in optimizers:
        optimizer._feed.observe(loss, route=BACKWARD, average=divides)
    return optimizers
