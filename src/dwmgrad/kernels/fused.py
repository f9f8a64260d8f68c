"""The rule as two of torch's own fused operators: no temporaries, one pass over memory each.

`_fused_adamw_` with beta1 = 0, bias corrections of 1 and its parameter slot holding v computes

    s <- s·decay + g²·(1 - decay)        v <- v·(1 - lr·weight_decay) - lr·g/(√s + ε)

which is the rule for lr = -α and lr·weight_decay = 1 - μ. `_fused_sgd_` without momentum then
computes θ <- θ - (v + α·λ·θ).
"""

from __future__ import annotations

import copy
import math
from functools import cache

import torch
from torch import Tensor

from . import reference
from .coefficients import Coefficients, Tensors

_STEPS_WITHOUT_BIAS = 1e12  # decay ** 1e12 is 0, so both bias corrections are exactly 1


def update(tensors: Tensors, c: Coefficients) -> bool:
    """The rule for tensors of one device and dtype that `accepts` takes; skips no element."""
    params, grads, momentum_buffers, square_avgs, _ = tensors
    steps = torch.full((), _STEPS_WITHOUT_BIAS, dtype=torch.float32, device=params[0].device)
    torch._fused_adamw_(
        momentum_buffers,
        grads,
        grads,  # the slot of the first moment: with beta1 = 0 the gradient is stored back unchanged
        square_avgs,
        [],
        [steps] * len(params),
        lr=-c.step_size,
        beta1=0.0,
        beta2=c.decay,
        weight_decay=(1 - c.momentum) / -c.step_size,
        eps=c.eps,
        amsgrad=False,
        maximize=False,
    )
    if _sgd_is_wrong(params[0]):
        torch._foreach_sub_(params, momentum_buffers)
        return False
    torch._fused_sgd_(
        params,
        momentum_buffers,
        [],
        weight_decay=c.shrink,
        momentum=0.0,
        lr=1.0,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )
    return False


def accepts(param: Tensor, c: Coefficients) -> bool:
    """Whether this kernel is right for the parameter's device and dtype with these numbers."""
    # the slot of the weight decay takes (1 - μ)/α
    if c.step_size == 0 or not math.isfinite((1 - c.momentum) / c.step_size):
        return False
    if c.shrink != 0 and _sgd_is_wrong(param):
        return False
    return is_right(param.device, param.dtype)


def _sgd_is_wrong(param: Tensor) -> bool:
    # torch 2.5.1 to 2.13.0: the vectorized 16-bit path of _fused_sgd_ on the CPU returns garbage.
    return param.element_size() < 4 and param.device.type == "cpu"


@cache
def is_right(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the two operators do on this device and dtype what the plain loop does.

    They are private to torch and differ from build to build, so each pair of device and dtype is
    checked once against the reference, on 64 numbers.
    """
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(4, 64, generator=generator, dtype=torch.float64, device="cpu")
    param, grad, v, s = numbers.to(device, dtype).unbind()
    tensors = Tensors([param], [grad], [v], [s], [0])
    expected = copy.deepcopy(tensors)
    shrink = 0.0 if _sgd_is_wrong(param) else 1e-2
    c = Coefficients(step_size=0.25, decay=0.75, momentum=0.5, eps=1e-8, shrink=shrink)
    reference.update(expected, c)
    try:
        update(tensors, c)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False  # no such operator for this device or in this torch
    close = torch.finfo(dtype).eps * 4
    pairs = zip(tensors[:4], expected[:4], strict=True)
    return all(torch.allclose(a[0], b[0], rtol=close, atol=close) for a, b in pairs)
