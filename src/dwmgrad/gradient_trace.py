"""Whether gradients are still those that a backward pass left, without the optimizer's help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .state import local_part

_SMALL = 2**16  # elements, which are looked through in microseconds


Marks = list[tuple[int, int] | None]


class Trace:
    """Tells whether the gradients of an optimizer's parameters were dropped since it was made.

    It watches one small gradient, and looks at the others only where that one is gone or zero.
    Nothing is said to be dropped where no gradient was to be seen to begin with: FSDP2 without
    synchronisation keeps them elsewhere.

    Args:
        groups: the optimizer's parameter groups.
        before: their `marks` before the backward pass. What it has not touched may be zero anyhow.
    """

    def __init__(self, groups: list[dict[str, Any]], before: Marks) -> None:
        self._param = _smallest(groups, before)
        # an accelerator is waited for where the gradient has changed, with `capturable` never
        self._waits = not groups[0]["capturable"]
        if self._param is not None:
            assert self._param.grad is not None
            self._mark = _mark(self._param)
            self._was_there = local_part(self._param.grad).any()

    def is_lost(self, groups: list[dict[str, Any]]) -> bool:
        """Whether all gradients are gone, or were set to zero."""
        if self._param is None:
            return False
        grad = self._param.grad
        if grad is None:
            return all(param.grad is None for param in _last_first(groups))
        # zero_grad(set_to_none=False) and clipping change the mark, `grad.data.zero_()` does not
        is_read = self._waits and _mark(self._param) != self._mark
        if not is_read and grad.device.type != "cpu":
            return False
        if local_part(grad).any() or not self._was_there:
            return False
        grads = (p.grad for p in _last_first(groups) if p.grad is not None)
        return not any(local_part(grad).any() for grad in grads)


def may_be_elsewhere(groups: list[dict[str, Any]]) -> bool:
    """Whether a backward pass may leave its gradients out of `.grad`, as FSDP's does."""
    return any(
        hasattr(param, "placements") or hasattr(param, "_fsdp_flattened")
        for param in _last_first(groups)
    )


def marks(groups: list[dict[str, Any]]) -> Marks:
    """For each parameter which gradient it has, in which version: equal where none has changed."""
    return [_mark(param) for group in groups for param in group["params"]]


def _mark(param: Tensor) -> tuple[int, int] | None:
    grad = param.grad
    return None if grad is None else (id(grad), grad._version)


def _smallest(groups: list[dict[str, Any]], before: Marks) -> Tensor | None:
    """A parameter with a small gradient: the last one, as heads have gradients that are not 0."""
    found, least = None, 0
    for param, mark in zip(_last_first(groups), reversed(before), strict=True):
        grad = param.grad
        if grad is None or grad.layout is not torch.strided or _mark(param) == mark:
            continue
        if getattr(param, "_fsdp_flattened", False):  # FSDP1 moves the gradients about
            continue
        size = local_part(grad).numel()
        if size and (found is None or size < least):
            found, least = param, size
            if size <= _SMALL:
                break
    return found


def _last_first(groups: list[dict[str, Any]]) -> Iterator[Tensor]:
    return (param for group in reversed(groups) for param in reversed(group["params"]))
