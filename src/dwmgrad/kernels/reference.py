"""The plain loop: the truth that every other kernel is tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..rule import move
from ..scalars import widest
from . import low_bit
from .coefficients import Blockwise, Buffer, Coefficients, Tensors, parts_of


def update(tensors: Tensors, c: Coefficients) -> bool:
    """Steps 3, 5 and 6 of the rule, in place, for tensors of any dtypes and strides.

    An element is skipped, θ, v and s stay as they are, if its gradient cannot be squared (not
    finite, or beyond the root of the dtype's largest number) or if its mean square does not fit
    the dtype of s.

    Where one of the four has 16 bits or fewer, or they differ, the rule is computed in the
    parameter's precision, in float32 at least, and rounded once a buffer.

    Returns whether an element was skipped.
    """
    skipped = False
    for param, grad, v, s, ordinal in zip(*tensors, strict=True):
        if isinstance(v, Tensor) and isinstance(s, Tensor) and param.element_size() >= 4:
            if param.dtype == grad.dtype == v.dtype == s.dtype and grad.square().isfinite().all():
                move(param, grad, v, s, c)
                continue
        old, g = _wide(param, grad, v, s)
        new = [each.clone() for each in old]
        move(new[0], g, new[1], new[2], c)
        takes = g.square().isfinite() & new[2].to(_dtype_of(s)).isfinite()
        new = [torch.where(takes, fresh, kept) for fresh, kept in zip(new, old, strict=True)]
        _store((param, v, s), new, ordinal, c)
        skipped |= not bool(takes.all())
    return skipped


def squared_norms(tensors: Tensors, c: Coefficients, inverse: Any = 1.0) -> list[Tensor]:
    """For each parameter Σ g²/(√s + ε), with the mean square that the step will make.

    Elements that the step skips because their gradient cannot be squared are left out; the
    gradients are multiplied by `inverse` first. Nothing is written.

    Returns:
        0-dim tensors on the device, in float64 where it has that.
    """
    found = []
    for param, grad, _, s, _ in zip(*tensors, strict=True):
        dtype = torch.promote_types(param.dtype, torch.float32)
        square = (grad.to(dtype) * inverse).to(dtype).square()  # of one number it would be wider
        mean = (low_bit.decode(s) if isinstance(s, Blockwise) else s).to(dtype)
        mean = mean * c.decay + (1 - c.decay) * square
        norm = torch.where(square.isfinite(), square / (mean.sqrt() + c.eps), 0.0)
        found.append(norm.sum(dtype=widest(norm.device)))
    return found


def update_on_device(tensors: Tensors, numbers: Tensor, skipped: Tensor, c: Coefficients) -> None:
    """As `update`, with all numbers on the device, for what `one_launch` does not take.

    Nothing here waits for the device, and all tensors stay where they are, so it can be captured.
    For the arguments see `one_launch.launch`; the numbers may be float64, and the noise is `c`'s.
    """
    active = numbers[7] > 0
    for param, grad, v, s, ordinal in zip(*tensors, strict=True):
        old, g = _wide(param, grad, v, s)
        rates = numbers[:7].to(g.dtype).unbind()
        step_size, decay, keep, momentum, eps, shrink, inverse = rates
        g = g * inverse
        # in the order of native.c
        squares = old[2] * decay + keep * g * g
        moments = old[1] * momentum + step_size * g / (squares.sqrt() + eps)
        new = [old[0] - shrink * old[0] - moments, moments, squares]
        takes = (g * g).isfinite() & (squares <= torch.finfo(_dtype_of(s)).max)
        skipped.logical_or_(active & ~takes.all())
        new = [torch.where(takes, fresh, kept) for fresh, kept in zip(new, old, strict=True)]
        stored = [_empty_like(each) for each in (param, v, s)]
        _store(stored, new, ordinal, c)
        for buffer, fresh in zip((param, v, s), stored, strict=True):
            for part, fresh_part in zip(parts_of(buffer), parts_of(fresh), strict=True):
                # an inactive step keeps every bit
                part.copy_(torch.where(active, fresh_part, part))


def _wide(param: Tensor, grad: Tensor, v: Buffer, s: Buffer) -> tuple[list[Tensor], Tensor]:
    """θ, v and s, and the gradient, in the parameter's precision, in float32 at least."""
    dtype = torch.promote_types(param.dtype, torch.float32)
    state = (low_bit.decode(each) if isinstance(each, Blockwise) else each for each in (v, s))
    return [param.to(dtype), *(each.to(dtype) for each in state)], grad.to(dtype)


def _dtype_of(buffer: Buffer) -> torch.dtype:
    return buffer.dtype if isinstance(buffer, Tensor) else torch.float32


def _empty_like(buffer: Buffer) -> Buffer:
    if isinstance(buffer, Blockwise):
        return Blockwise(*map(torch.empty_like, buffer))
    return torch.empty_like(buffer)


def _store(buffers: Sequence[Any], values: list[Tensor], ordinal: int, c: Coefficients) -> None:
    """Rounds θ, v and s into their buffers, stochastically or to the nearest."""
    param, v, s = buffers
    bits = low_bit.random_bits(param, c.noise, ordinal)
    rounds_state = c.stochastic_state or isinstance(v, Blockwise)
    _round(param, values[0], low_bit.hash32(bits) if c.stochastic_params else None)
    _round(v, values[1], bits if rounds_state else None)
    _round(s, values[2], bits >> 16 if rounds_state else None)


def _round(buffer: Buffer, values: Tensor, bits: Tensor | None) -> None:
    if isinstance(buffer, Blockwise):
        assert bits is not None
        low_bit.encode(buffer, values.float(), bits)
    elif bits is not None and buffer.dtype == torch.bfloat16:
        buffer.copy_(low_bit.round_to_bfloat16(values.float(), bits))
    else:
        buffer.copy_(values)
