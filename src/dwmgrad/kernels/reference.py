"""The plain loop: the truth that every other kernel is tested against."""

from __future__ import annotations

from torch import Tensor

from .coefficients import Coefficients


def update(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    square_avgs: list[Tensor],
    c: Coefficients,
) -> None:
    """Steps 3, 5 and 6 of the rule, in place, for tensors of any dtype and strides.

    16-bit tensors are computed in float32 and rounded once a buffer, as the fused kernels do.
    """
    for param, grad, v, s in zip(params, grads, momentum_buffers, square_avgs, strict=True):
        if param.element_size() < 4:
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
    wide_v, wide_s = v.float(), s.float()
    _update(param.float(), grad.float(), wide_v, wide_s, c)
    s.copy_(wide_s)
    v.copy_(wide_v)
    wide = param.float()
    param.copy_(wide.add_(wide, alpha=-c.shrink).sub_(v.float()))
