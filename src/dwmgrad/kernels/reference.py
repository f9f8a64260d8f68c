"""The plain loop: the truth that every other kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from . import narrow
from .coefficients import Blockwise, Buffer, Coefficients, Tensors


def update(tensors: Tensors, c: Coefficients) -> bool:
    """Steps 3, 5 and 6 of the rule, in place, for tensors of any dtypes and strides.

    An element whose gradient cannot be squared (not finite, or beyond the root of the dtype's
    largest number) is held: θ, v and s stay as they are. So is one whose mean square does not fit
    the dtype of s.

    Where one of the four has 16 bits or fewer, or they differ, the rule is computed in the
    parameter's precision, in float32 at least, and rounded once a buffer.

    Returns:
        Whether an element was held.
    """
    held = False
    for param, grad, v, s, ordinal in zip(*tensors, strict=True):
        if isinstance(v, Tensor) and isinstance(s, Tensor) and param.element_size() >= 4:
            if param.dtype == grad.dtype == v.dtype == s.dtype and grad.square().isfinite().all():
                _update(param, grad, v, s, c)
                continue
        held |= _update_wide(param, grad, v, s, c, ordinal)
    return held


def _update(param: Tensor, grad: Tensor, v: Tensor, s: Tensor, c: Coefficients) -> None:
    s.mul_(c.decay).addcmul_(grad, grad, value=1 - c.decay)
    v.mul_(c.momentum).addcdiv_(grad, s.sqrt().add_(c.eps), value=c.step_size)
    if c.shrink != 0:
        # Not mul_(1 - shrink): that factor, rounded to float32, is off the same way at every step.
        param.add_(param, alpha=-c.shrink)
    param.sub_(v)


def _update_wide(
    param: Tensor, grad: Tensor, v: Buffer, s: Buffer, c: Coefficients, ordinal: int
) -> bool:
    dtype = torch.promote_types(param.dtype, torch.float32)
    old = [param.to(dtype), load(v, dtype), load(s, dtype)]
    new = [each.clone() for each in old]
    grad = grad.to(dtype)
    _update(new[0], grad, new[1], new[2], c)
    takes = grad.square().isfinite()
    takes &= new[2].to(s.dtype if isinstance(s, Tensor) else torch.float32).isfinite()
    new = [torch.where(takes, fresh, kept) for fresh, kept in zip(new, old, strict=True)]
    bits = narrow.random_bits(param, c.noise, ordinal)
    store(param, new[0], narrow.hash32(bits) if c.dither_params else None)
    dithers = c.dither_state or isinstance(v, Blockwise)
    store(v, new[1], bits if dithers else None)
    store(s, new[2], bits >> 16 if dithers else None)
    return not bool(takes.all())


def load(buffer: Buffer, dtype: torch.dtype) -> Tensor:
    """What the buffer holds, in a wider dtype."""
    return (narrow.decode(buffer) if isinstance(buffer, Blockwise) else buffer).to(dtype)


def store(buffer: Buffer, values: Tensor, bits: Tensor | None) -> None:
    """Rounds the values into the buffer: with random bits stochastically, else to the nearest."""
    if isinstance(buffer, Blockwise):
        assert bits is not None
        narrow.encode(buffer, values.float(), bits)
    elif bits is not None and buffer.dtype == torch.bfloat16:
        buffer.copy_(narrow.round_to_bfloat16(values.float(), bits))
    else:
        buffer.copy_(values)
