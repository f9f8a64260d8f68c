"""The losses of whatever trains through Accelerate: it ends at `Accelerator.backward(loss)`.

The Trainer, its subclasses and bare loops all call it once per micro-batch, with the loss unscaled
and, under DeepSpeed, before the optimizer's step, which happens inside. The optimizer gets what is
differentiated: the loss after Accelerate, or DeepSpeed, has divided it by the accumulation steps.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..gradient_trace import may_be_elsewhere
from ..losses import BACKWARD, brought
from ..patching import tell_after, tell_before, wrap
from ..ranks import replicas
from ..wrappers import innermost, inside
from ..zero import show_pieces


def attach(host: ModuleType) -> None:
    """Wraps what Accelerator does with optimizers and losses."""
    wrap(host.Accelerator, "prepare", _checking)
    wrap(host.Accelerator, "backward", _with_loss)
    tell_after(host.Accelerator, "prepare_model", _remember)
    wrap(host.Accelerator, "clip_grad_norm_", _telling)
    tell_before(host.Accelerator, "free_memory", _forget)


def _checking(prepare: Any, self: Any, *objects: Any, **kwargs: Any) -> Any:
    given = inside(o for o in objects if isinstance(o, Optimizer))  # a scheduler has one, too
    if given and self.distributed_type == "MEGATRON_LM":
        raise RuntimeError(
            "Megatron-LM builds its own optimizer, so DWMGrad cannot train there: use DDP, "
            "FSDP or DeepSpeed"
        )
    if given and self.distributed_type == "DEEPSPEED":
        _refuse_replacement(self.state.deepspeed_plugin.deepspeed_config)
    prepared = prepare(self, *objects, **kwargs)
    if given and not inside(self._optimizers):
        raise RuntimeError(
            "accelerator.prepare() replaced DWMGrad by another optimizer: look for one in the "
            "configuration of Accelerate or DeepSpeed, and remove it"
        )
    return prepared


def _remember(_: Any, model: Any, /, *args: Any, **kwargs: Any) -> None:
    if hasattr(model, "require_backward_grad_sync"):
        replicas.add(model)


def _with_loss(backward: Any, self: Any, loss: Any, **kwargs: Any) -> Any:
    optimizers = inside(self._optimizers)
    if not optimizers:
        return backward(self, loss, **kwargs)
    steps_inside = self.distributed_type == "DEEPSPEED"
    if steps_inside:
        show_pieces(self._optimizers)
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
        _forget(self)
    return result


def _telling(
    clip: Any, self: Any, /, parameters: Any, max_norm: float, *args: Any, **kwargs: Any
) -> Any:
    if not inside(self._optimizers):
        return clip(self, parameters, max_norm, *args, **kwargs)
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    norm = clip(self, parameters, max_norm, *args, **kwargs)
    if norm is not None:
        for optimizer in inside(_owners(self._optimizers, parameters)):
            optimizer.observe_clipping(norm, max_norm)
    return norm


def _owners(optimizers: list[Any], parameters: list[Any]) -> list[Any]:
    """Those of the optimizers that have one of the parameters; all, where none has."""
    wanted = set(map(id, parameters))
    return [
        each
        for each in optimizers
        if any(id(param) in wanted for group in each.param_groups for param in group["params"])
    ] or optimizers


def _forget(accelerator: Any) -> None:
    """Drops the losses of an aborted batch, which auto_find_batch_size leaves behind."""
    for optimizer in inside(accelerator._optimizers):
        optimizer.discard_loss()


def _refuse_replacement(config: dict[str, Any]) -> None:
    """Accelerate takes DeepSpeedCPUAdam for an off-loaded optimizer, after minutes of building it.

    Raises:
        RuntimeError: if it would, with this configuration of DeepSpeed.
    """
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    if offload.get("device", "none") != "none" and config.get("zero_force_ds_cpu_optimizer", True):
        raise RuntimeError(
            "DeepSpeed off-loads the optimizer, so Accelerate would replace DWMGrad by "
            'DeepSpeedCPUAdam: set "zero_force_ds_cpu_optimizer": false in DeepSpeed\'s JSON file, '
            "and name that file as deepspeed_config_file in Accelerate's configuration"
        )


def _divisor(accelerator: Any, backward_arguments: dict[str, Any]) -> int:
    """What the loss is divided by before it is differentiated. The Trainer divides by itself."""
    if accelerator.distributed_type != "DEEPSPEED":
        return accelerator.gradient_accumulation_steps
    divides = backward_arguments.get("scale_wrt_gas", True)
    engine = accelerator.deepspeed_engine_wrapped
    return engine.engine.gradient_accumulation_steps() if divides and engine is not None else 1
