"""Whether gradients may touch the state, for the kernels that do not look at each by themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def can_be_squared(grads: list[Tensor]) -> bool:
    """Whether each gradient and its square are finite, judged by its norm.

    A norm beyond the root of the dtype's largest number (1.8e19 in float32) counts as one that
    cannot be squared. One host sync on an accelerator.

    Args:
        grads: dense tensors of one device and one dtype.
    """
    # a 16-bit norm overflows long before its elements do
    order = math.inf if grads[0].dtype == torch.float16 else 2
    limit = math.sqrt(torch.finfo(grads[0].dtype).max)
    return bool((torch.stack(torch._foreach_norm(grads, order)) <= limit).all())
