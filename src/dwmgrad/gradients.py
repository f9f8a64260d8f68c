"""Whether the gradients may touch the state: one number, without a host sync on accelerators."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def fault_of(grads: Iterable[Tensor]) -> Tensor | float:
    """0 if every gradient can be squared, NaN if one is not finite or its square is not.

    It looks at each gradient's norm: one that is beyond the root of the dtype's largest number
    (1.8e19 in float32) counts as a gradient that cannot be squared.

    Args:
        grads: dense gradients on any devices; of a DTensor this rank's shard is judged.

    Returns:
        A float for gradients on the CPU, else a 0-dim float32 tensor on an accelerator.
    """
    buckets: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for grad in grads:
        if hasattr(grad, "to_local"):  # a DTensor
            grad = grad.to_local()
        if grad.numel() > 0:
            buckets[grad.device, grad.dtype].append(grad)
    fault: Tensor | float = 0.0
    for (device, dtype), bucket in buckets.items():
        # a 16-bit norm overflows long before its elements do
        order = math.inf if dtype == torch.float16 else 2
        limit = math.sqrt(torch.finfo(dtype).max)
        norms = torch.stack(torch._foreach_norm(bucket, order))
        if device.type == "cpu":
            fault += 0.0 if bool((norms <= limit).all()) else math.nan
        else:
            found = torch.where((norms <= limit).all(), 0.0, math.nan).float()
            fault = found + (fault.to(device) if isinstance(fault, Tensor) else fault)
    return fault
