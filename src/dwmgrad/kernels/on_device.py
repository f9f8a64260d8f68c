"""The plain loop with all its numbers on the device, for what `one_launch` does not take.

Nothing here waits for the device, and all tensors stay where they are, so it can be captured.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import narrow, reference
from .coefficients import Blockwise, Buffer, Tensors


def update(
    tensors: Tensors, numbers: Tensor, held: Tensor, dither_state: bool, dither_params: bool
) -> None:
    """The rule, for tensors of any dtypes and strides.

    Args:
        tensors: of one device.
        numbers: those of `one_launch.launch`, in float32 or float64.
        held: one int32; becomes 1 if an element is held.
        dither_state, dither_params: see `Coefficients`.
    """
    *_, active, low, high = numbers.unbind()
    noise = low.to(torch.int64) + (high.to(torch.int64) << 16)
    for param, grad, v, s, ordinal in zip(*tensors, strict=True):
        dtype = torch.promote_types(param.dtype, torch.float32)
        old = [param.to(dtype), reference.load(v, dtype), reference.load(s, dtype)]
        *new, square = _rule(old, grad.to(dtype), numbers.to(dtype))
        most = torch.finfo(s.dtype if isinstance(s, Tensor) else torch.float32).max
        takes = square.isfinite() & (new[2] <= most)
        held.logical_or_((active > 0) & ~takes.all())
        new = [torch.where(takes, fresh, kept) for fresh, kept in zip(new, old, strict=True)]
        bits = narrow.random_bits(param, noise, ordinal)
        dithers = dither_state or isinstance(v, Blockwise)
        _store(param, new[0], narrow.hash32(bits) if dither_params else None, active)
        _store(v, new[1], bits if dithers else None, active)
        _store(s, new[2], bits >> 16 if dithers else None, active)


def _rule(old: list[Tensor], g: Tensor, numbers: Tensor) -> list[Tensor]:
    """θ, v and s after the step, and the squares of the gradients; in the order of native.c."""
    p, v, s = old
    step_size, decay, keep, momentum, eps, shrink, inverse, *_ = numbers.unbind()
    g = g * inverse
    s = s * decay + keep * g * g
    v = v * momentum + step_size * g / (s.sqrt() + eps)
    return [p - shrink * p - v, v, s, g * g]


def _store(buffer: Buffer, values: Tensor, bits: Tensor | None, active: Tensor) -> None:
    """Stores the values if the step is active; else the buffer keeps every bit that it has."""
    if isinstance(buffer, Blockwise):
        stored: Buffer = Blockwise(*(torch.empty_like(part) for part in buffer))
        parts = list(zip(buffer, stored, strict=True))
    else:
        stored = torch.empty_like(buffer)
        parts = [(buffer, stored)]
    reference.store(stored, values, bits)
    for part, new in parts:
        part.copy_(torch.where(active > 0, new, part))
