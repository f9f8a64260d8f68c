"""One update rule, one signature, several ways to run it; the choice between them is made here.

| kernel | chosen by default | right for |
|---|---|---|
| `fused` | on every device where it agrees with the loop | plain dense tensors, lr > 0 |
| `foreach` | on accelerators, for what `fused` cannot take | plain dense tensors, 32 bits or more |
| `reference` | for everything else | every tensor |
"""

from __future__ import annotations

from collections import defaultdict
from types import ModuleType

from torch import Tensor
from torch.nn import Parameter

from . import foreach, fused, reference
from .coefficients import Coefficients, Tensors

__all__ = ["Coefficients", "Tensors", "update"]


def update(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    square_avgs: list[Tensor],
    coefficients: Coefficients,
    *,
    use_foreach: bool | None = None,
    use_fused: bool | None = None,
) -> None:
    """Applies the rule in place, each tensor with the fastest kernel that is right for it.

    Args:
        params, grads, momentum_buffers, square_avgs: lists of equal length; the tensors of one
            index have one shape and one device.
        coefficients: the step's numbers.
        use_foreach, use_fused: True prefers that kernel and False excludes it; None chooses by
            what was measured. A kernel is never used where it would be wrong.
    """
    buckets: dict[tuple, Tensors] = defaultdict(lambda: ([], [], [], []))
    for tensors in zip(params, grads, momentum_buffers, square_avgs, strict=True):
        param = tensors[0]
        key = (param.device, param.dtype, _are_plain(*tensors))
        for column, tensor in zip(buckets[key], tensors, strict=True):
            column.append(tensor)
    for (_, _, plain), bucket in buckets.items():
        kernel = _choose(bucket[0][0], plain, coefficients, use_foreach, use_fused)
        kernel.update(*bucket, coefficients)


def _are_plain(param: Tensor, grad: Tensor, v: Tensor, s: Tensor) -> bool:
    """Whether one flat loop over memory visits the same element of all four tensors."""
    if type(param) not in (Tensor, Parameter) or type(grad) is not Tensor:
        return False
    if not param.dtype == grad.dtype == v.dtype == s.dtype:
        return False
    if all(t.is_contiguous() for t in (param, grad, v, s)):
        return True
    # The state was made by zeros_like, so it is dense, and with it whatever has its strides.
    # torch.optim.AdamW(fused=True) forgets this check on the CPU and mixes the elements up.
    return param.stride() == grad.stride() == v.stride() == s.stride()


def _choose(
    param: Tensor,
    plain: bool,
    coefficients: Coefficients,
    use_foreach: bool | None,
    use_fused: bool | None,
) -> ModuleType:
    if not plain:
        return reference
    if use_fused is not False and not use_foreach and fused.accepts(param, coefficients):
        return fused
    # On the CPU foreach is slower than the loop: it has no launches to save and writes temporaries.
    wanted = param.device.type != "cpu" if use_foreach is None else use_foreach
    return foreach if wanted and param.element_size() >= 4 else reference
