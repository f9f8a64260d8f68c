"""Few launches for many tensors: torch's `_foreach_` operators, at the price of temporaries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .coefficients import Coefficients, Tensors


def update(tensors: Tensors, c: Coefficients) -> bool:
    """The rule for tensors of one device and one dtype of at least 32 bits; skips no element."""
    params, grads, momentum_buffers, square_avgs, _ = tensors
    torch._foreach_mul_(square_avgs, c.decay)
    torch._foreach_addcmul_(square_avgs, grads, grads, value=1 - c.decay)
    roots = torch._foreach_sqrt(square_avgs)
    torch._foreach_add_(roots, c.eps)
    torch._foreach_mul_(momentum_buffers, c.momentum)
    torch._foreach_addcdiv_(momentum_buffers, grads, roots, value=c.step_size)
    if c.shrink != 0:
        torch._foreach_add_(params, params, alpha=-c.shrink)
    torch._foreach_sub_(params, momentum_buffers)
    return False


def can_be_squared(grads: list[Tensor]) -> bool:
    """Whether each gradient and its square are finite, for kernels that skip no element.

    A gradient counts as too large if its norm exceeds the root of the dtype's largest number
    (1.8e19 in float32). One host sync on an accelerator.
    """
    # a 16-bit norm overflows long before its elements do
    order = math.inf if grads[0].dtype == torch.float16 else 2
    limit = math.sqrt(torch.finfo(grads[0].dtype).max)
    return bool((torch.stack(torch._foreach_norm(grads, order)) <= limit).all())
