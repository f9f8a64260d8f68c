"""The loss feed: whatever trains through Accelerate ends at `Accelerator.backward(loss)`.

The Trainer, its many subclasses and bare loops all call it once per micro-batch, with the loss
unscaled and, under DeepSpeed, before the optimizer's step, which happens inside. So this is the one
place where every loss can be had. What is handed on is what is differentiated: the loss after
Accelerate, or DeepSpeed, has divided it by the accumulation steps.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from ..gradient_trace import may_be_elsewhere
from ..loss_feed import BACKWARD, brought
from ..ranks import replicas
from ..wrappers import innermost, inside

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

__all__ = ["attach", "innermost", "inside"]


def attach() -> None:
    """Wraps what Accelerator does with optimizers and losses; a second call does nothing.

    The class is wrapped, not an instance: hyper-parameter search makes new ones.
    """
    # Here, so that this module can be imported first: its own import must not attach it half made.
    from accelerate.accelerator import Accelerator
    from accelerate.utils import DistributedType

    if getattr(Accelerator.backward, "feeds_dwmgrad", False):
        return
    backward, free_memory = Accelerator.backward, Accelerator.free_memory
    prepare, prepare_model = Accelerator.prepare, Accelerator.prepare_model

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

    @functools.wraps(prepare_model)
    def prepare_model_and_know(self: Accelerator, *args: Any, **kwargs: Any) -> Any:
        model = prepare_model(self, *args, **kwargs)
        if hasattr(model, "require_backward_grad_sync"):
            replicas.add(model)
        return model

    @functools.wraps(backward)
    def backward_with_loss(self: Accelerator, loss: Any, **kwargs: Any) -> Any:
        optimizers = inside(self._optimizers)
        if not optimizers:
            return backward(self, loss, **kwargs)
        steps_inside = self.distributed_type == DistributedType.DEEPSPEED
        only = len({id(innermost(o)) for o in self._optimizers}) == 1
        with brought(
            optimizers,
            loss,
            BACKWARD,
            gradient=kwargs.get("gradient"),
            divisor=_divisor(self, kwargs),
            only=only,
            alone=only and (steps_inside or may_be_elsewhere(optimizers[0].param_groups)),
            steps_inside=steps_inside,
        ):
            result = backward(self, loss, **kwargs)
        if steps_inside and self.sync_gradients:
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
    Accelerator.prepare_model = prepare_model_and_know


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


def _divisor(accelerator: Accelerator, backward_arguments: dict[str, Any]) -> int:
    """What the loss is divided by before it is differentiated. The Trainer divides by itself."""
    if accelerator.distributed_type != "DEEPSPEED":
        return accelerator.gradient_accumulation_steps
    divides = backward_arguments.get("scale_wrt_gas", True)
    engine = accelerator.deepspeed_engine_wrapped
    return engine.engine.gradient_accumulation_steps() if divides and engine is not None else 1
