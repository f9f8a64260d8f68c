"""One update rule, one signature, several ways to run it; the choice between them is made here.

| kernel | chosen by default | right for |
|---|---|---|
| `native` | on the CPU where there is a C compiler | float32 and bfloat16, any state |
| `one_launch` | on GPUs where there is Triton | 16 and 32 bits, any state |
| `fused` | where neither is to be had, if it agrees with the loop | one dtype, lr > 0 |
| `foreach` | on accelerators, for what `fused` cannot take | one dtype, 32 bits or more |
| `reference` | for everything else | every tensor |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from types import ModuleType

from torch import Tensor
from torch.nn import Parameter

from . import foreach, fused, native, on_device, one_launch, reference
from .coefficients import Blockwise, Buffer, Coefficients, Tensors
from .gradients import can_be_squared

__all__ = ["Blockwise", "Buffer", "Coefficients", "Tensors", "update", "update_on_device"]


def update(
    tensors: Tensors,
    coefficients: Coefficients,
    *,
    use_foreach: bool | None = None,
    use_fused: bool | None = None,
) -> list[bool | Tensor]:
    """Applies the rule in place, each tensor with the fastest kernel that is right for it.

    Args:
        tensors: parameters, gradients and buffers; those of one index have one shape and device.
        coefficients: the step's numbers.
        use_foreach, use_fused: True prefers that kernel and False excludes it (`native` and
            `one_launch` count as fused); None chooses by what was measured. A kernel is never used
            where it would be wrong.

    Returns:
        For each kernel that ran, whether it held an element because its gradient cannot be
        squared (see `reference.update`): a bool or, so that nobody waits for an accelerator, a
        number on it.
    """
    return [
        _choose(bucket, flat, coefficients, use_foreach, use_fused).update(bucket, coefficients)
        for flat, bucket in _buckets(tensors)
    ]


def update_on_device(
    tensors: Tensors,
    numbers: Tensor,
    held: Tensor,
    addresses: one_launch.Addresses,
    *,
    dither_state: bool = False,
    dither_params: bool = False,
    use_foreach: bool | None = None,
    use_fused: bool | None = None,
) -> None:
    """As `update`, with all numbers on the device of the tensors, without waiting for it.

    Args:
        numbers, held, addresses: see `one_launch.launch`; the numbers may be float64.
        dither_state, dither_params: see `Coefficients`.
        use_foreach, use_fused: which exclude `one_launch`.
    """
    may_fuse = use_fused is not False and not use_foreach
    dither = (dither_state, dither_params)
    for flat, bucket in _buckets(tensors):
        param, buffer = bucket.params[0], bucket.momentum_buffers[0]
        if flat and may_fuse and one_launch.accepts(param, buffer):
            one_launch.launch(bucket, numbers.float(), held, *dither, addresses)
        else:
            on_device.update(bucket, numbers, held, *dither)


def _buckets(tensors: Tensors) -> Iterator[tuple[bool, Tensors]]:
    """The tensors of one device, one dtype and one kind of state, and whether they are flat."""
    buckets: dict[tuple, Tensors] = defaultdict(Tensors.empty)
    for row in zip(*tensors, strict=True):
        param, _, v, _, _ = row
        kind = v.dtype if isinstance(v, Tensor) else Blockwise
        buckets[param.device, param.dtype, kind, _are_flat(*row[:4])].add(*row)
    return ((flat, bucket) for (*_, flat), bucket in buckets.items())


def _are_flat(param: Tensor, grad: Tensor, v: Buffer, s: Buffer) -> bool:
    """Whether one flat loop over memory visits the same element of all four."""
    if type(param) not in (Tensor, Parameter) or type(grad) is not Tensor:
        return False
    if param.dtype != grad.dtype:
        return False
    if not (isinstance(v, Tensor) and isinstance(s, Tensor)):  # 8-bit: contiguous codes
        return param.is_contiguous() and grad.is_contiguous()
    if v.dtype != s.dtype:
        return False
    if param.is_contiguous() and grad.is_contiguous() and v.is_contiguous() and s.is_contiguous():
        return True
    # The state was made by zeros_like, so it is dense, and with it whatever has its strides.
    # torch.optim.AdamW(fused=True) forgets this check on the CPU and mixes the elements up.
    return param.stride() == grad.stride() == v.stride() == s.stride()


def _choose(
    bucket: Tensors,
    flat: bool,
    c: Coefficients,
    use_foreach: bool | None,
    use_fused: bool | None,
) -> ModuleType:
    param, buffer = bucket.params[0], bucket.momentum_buffers[0]
    if not flat:
        return reference
    may_fuse = use_fused is not False and not use_foreach
    if may_fuse and native.accepts(param, buffer):
        return native
    if may_fuse and one_launch.accepts(param, buffer):
        return one_launch
    dithers = c.dither_params or c.dither_state
    if not isinstance(buffer, Tensor) or buffer.dtype != param.dtype or dithers:
        return reference
    if not can_be_squared(bucket.grads):
        return reference  # which holds those elements
    if may_fuse and fused.accepts(param, c):
        return fused
    # On the CPU foreach is slower than the loop: it has no launches to save and writes temporaries.
    wanted = param.device.type != "cpu" if use_foreach is None else use_foreach
    return foreach if wanted and param.element_size() >= 4 else reference
