"""The mean loss over data-parallel ranks, so that the window is the same number on each of them."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist


def mean_over_ranks(loss: torch.Tensor | float | None, device: torch.device) -> float | None:
    """The mean of one loss over all ranks, the same on every rank.

    One 4-byte all-reduce, which every rank must join; none with one process.

    Args:
        loss: a tensor with one element, a number, or None on a rank to which no loss was given.
        device: where the all-reduce runs, unless the process group needs another one.

    Returns:
        NaN if the loss of any rank is not finite; else None if any rank has none; else the mean,
        in float32 precision (that of the loss with one process).
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None if loss is None else _finite_or_nan(float(loss))
    if dist.get_backend() == "nccl":  # which off-loaded parameters, on the CPU, know nothing of
        device = torch.device("cuda", torch.cuda.current_device())
    if loss is None:  # minus infinity survives every sum but one with NaN
        total = torch.full((), -math.inf, dtype=torch.float32, device=device)
    else:
        total = torch.as_tensor(loss, dtype=torch.float32, device=device).reshape(()).clone()
        total = torch.where(total.isfinite(), total, torch.nan)
    dist.all_reduce(total)
    mean = float(total) / dist.get_world_size()
    return None if mean == -math.inf else _finite_or_nan(mean)


def _finite_or_nan(value: float) -> float:
    return value if math.isfinite(value) else math.nan
