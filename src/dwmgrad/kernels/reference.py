"""The plain loop: the truth that every other kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from .coefficients import Coefficients


def update(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    square_avgs: list[Tensor],
    c: Coefficients,
) -> None:
    """Steps 3, 5 and 6 of the rule, in place, for tensors of any dtypes and strides.

    Where one of the four has 16 bits, or they differ, the rule is computed in the parameter's
    precision, in float32 at least, and rounded once a buffer, as the fused kernels do.
    """
    for param, grad, v, s in zip(params, grads, momentum_buffers, square_avgs, strict=True):
        if param.element_size() < 4 or not param.dtype == grad.dtype == v.dtype == s.dtype:
            _update_rounded(param, grad, v, s, c)
        else:
            _update(param, grad, v, s, c)


def _update(param: Tensor, grad: Tensor, v: Tensor, s: Tensor, c: Coefficients) -> None:
    s.mul_(c.decay).addcmul_(grad, grad, value=1 - c.decay)
    v.mul_(c.momentum).addcdiv_(grad, s.sqrt().add_(c.eps), value=c.step_size)
    if c.shrink != 0:
        # Not mul_(1 - shrink): that factor, rounded to float32, is off the same way at every step.
        param.add_(param, alpha=-c.shrink)
    param.sub_(v)


def _update_rounded(param: Tensor, grad: Tensor, v: Tensor, s: Tensor, c: Coefficients) -> None:
    dtype = torch.promote_types(param.dtype, torch.float32)
    wide_v, wide_s = v.to(dtype, copy=True), s.to(dtype, copy=True)
    _update(param.to(dtype, copy=True), grad.to(dtype), wide_v, wide_s, c)
    s.copy_(wide_s)
    v.copy_(wide_v)
    wide = param.to(dtype, copy=True)
    param.copy_(wide.add_(wide, alpha=-c.shrink).sub_(v))
