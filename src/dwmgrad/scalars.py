"""One number, on the host a float or on a device a 0-dim tensor, by the same words."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

Number = Any
"""A number on the host, a 0-dim tensor on a device."""


def where(condition: Number, yes: Number, no: Number) -> Number:
    """One of two numbers, on the host or on a device."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def widest(device: torch.device) -> torch.dtype:
    """Float64, which holds every whole number up to 2**53, on devices that have it."""
    return torch.float32 if device.type in ("mps", "xpu") else torch.float64


def placed(value: Number, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The number on a device; by value: a copy from the host's memory would make the host wait."""
    if isinstance(value, Tensor):
        return value.to(device, dtype).reshape(())
    return torch.full((), value, dtype=dtype, device=device)


def is_known(loss: Number | None) -> Number:
    """Whether there is a loss: None, or on a device NaN, stands for none."""
    return ~loss.isnan() if isinstance(loss, Tensor) else loss is not None


def within(least: float, number: Number, most: float = math.inf) -> Number:
    """The number, or the bound that it is beyond."""
    if isinstance(number, Tensor):
        return number.clamp(least, most)
    return min(max(number, least), most)


def largest(numbers: list[Number]) -> Number:
    """The largest of numbers on the host, on a device, or both."""
    return functools.reduce(lambda one, other: where(other > one, other, one), numbers)
