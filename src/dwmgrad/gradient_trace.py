"""Whether gradients are still those that a backward pass left, without the optimizer's help."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .state import is_flat_piece, local_part

_SMALL = 2**16  # elements, which are looked through in microseconds
_STATES = "_module_state_mapping"  # where torch keeps what `fully_shard` knows of a module

Mark = tuple[weakref.ref[Tensor], int] | None
"""A gradient and its version; not its id, which the next gradient may have."""


class Marks(NamedTuple):
    """Which gradients there were before a backward pass."""

    seen: list[Mark]  # in `.grad`, a parameter each
    apart: list[Mark]  # those that FSDP2 keeps without synchronisation


class Trace:
    """Tells whether the gradients of an optimizer's parameters were dropped since it was made.

    It watches one small gradient, on the CPU one that is not zero, and looks at the others only
    where that one is gone or zero. Nothing is said to be dropped where no gradient was to be seen
    to begin with: FSDP keeps them elsewhere without synchronisation, and those are not watched.

    Args:
        groups: the optimizer's parameter groups.
        before: their `marks` before the backward pass. What it has not touched may be zero anyhow.
    """

    def __init__(self, groups: list[dict[str, Any]], before: Marks) -> None:
        candidates = _small_first(groups, before.seen)
        self._param = next(candidates, None)
        if self._param is None:
            return
        on_cpu = self._param.is_cpu  # elsewhere the host would wait at each backward pass
        # an accelerator is waited for where the gradient has changed, with `capturable` never
        self._may_read = on_cpu or not groups[0]["capturable"]
        if on_cpu:
            found = (p for p in chain([self._param], candidates) if _has_numbers(p.grad))
            self._param = next(found, self._param)
        self.look_again()

    def look_again(self) -> None:
        """The gradients were changed on purpose: those that are there now are to be watched."""
        if self._param is not None and self._param.grad is not None:
            self._mark = _mark(self._param.grad)
            self._was_there = local_part(self._param.grad).any()

    def is_lost(self, groups: list[dict[str, Any]]) -> bool:
        """Whether all gradients are gone, or were set to zero."""
        if self._param is None:
            return False
        grad = self._param.grad
        if grad is not None:
            # zero_grad(set_to_none=False) changes the mark, `.data.zero_()` does not
            is_read = self._may_read and _is_changed(grad, self._mark)
            if not is_read and not grad.is_cpu:
                return False
            if not self._was_there or _has_numbers(grad):
                return False
        left = [param.grad for param in _last_first(groups) if param.grad is not None]
        if not left:
            return True
        return self._may_read and bool(self._was_there) and not any(map(_has_numbers, left))


def may_be_elsewhere(groups: list[dict[str, Any]]) -> bool:
    """Whether a backward pass may leave its gradients out of `.grad`, as FSDP's does."""
    return any(hasattr(p, "placements") or is_flat_piece(p) for p in _last_first(groups))


def marks(groups: list[dict[str, Any]]) -> Marks:
    """Which gradients the parameters have, for `are_changed`."""
    return Marks([_mark(p.grad) for p in _last_first(groups)], [*map(_mark, _apart(groups))])


def are_changed(groups: list[dict[str, Any]], before: Marks) -> bool:
    """Whether a gradient has come, gone, been replaced or written to since `marks`."""
    now = [p.grad for p in _last_first(groups)], list(_apart(groups))
    return any(
        len(grads) != len(own) or any(map(_is_changed, grads, own))
        for grads, own in zip(now, before, strict=True)
    )


def _apart(groups: list[dict[str, Any]]) -> Iterator[Tensor | None]:
    """Gradients that FSDP2 keeps out of `.grad` until it synchronizes, where they can be found.

    torch has no public way to them. Where its inner names change, none is found here.
    """
    own = {id(param) for param in _last_first(groups) if hasattr(param, "placements")}
    if not own:
        return
    known = getattr(sys.modules.get("torch.distributed._composable_state"), _STATES, {})
    for reference in list(known.values()):
        state = reference() if isinstance(reference, weakref.ref) else reference
        one = [getattr(state, "_fsdp_param_group", None)]  # as older versions have it
        for part in filter(None, getattr(state, "_fsdp_param_groups", one)):
            params = getattr(part, "fsdp_params", ())
            held = [each for each in params if id(getattr(each, "sharded_param", None)) in own]
            for each in held:
                yield getattr(each, "unsharded_accumulated_grad", None)
                yield getattr(getattr(each, "_unsharded_param", None), "grad", None)
            if held:  # of HSDP, between its two reductions
                yield getattr(part, "_partial_reduce_output", None)


def _mark(grad: Tensor | None) -> Mark:
    return None if grad is None else (weakref.ref(grad), _version(grad))


def _version(grad: Tensor) -> int:
    """How often it was written to. FSDP2 adds to a DTensor's shard, past the DTensor itself."""
    return getattr(grad, "_local_tensor", grad)._version


def _is_changed(grad: Tensor | None, mark: Mark) -> bool:
    if grad is None or mark is None:
        return grad is not mark
    return grad is not mark[0]() or _version(grad) != mark[1]


def _has_numbers(grad: Any) -> bool:
    """Whether not all of it is 0, as far as that can be read."""
    return grad.layout is not torch.strided or grad.is_meta or bool(local_part(grad).any())


def _small_first(groups: list[dict[str, Any]], before: list[Mark]) -> Iterator[Tensor]:
    """Parameters whose gradient is new: the small ones, from the last, then the others by size.

    Heads come last, and have gradients that are not 0.
    """
    large = []
    params = list(_last_first(groups))
    if len(before) != len(params):  # a group was added since
        before = [None] * len(params)
    for param, mark in zip(params, before, strict=True):
        grad = param.grad
        if grad is None or grad.layout is not torch.strided or not _is_changed(grad, mark):
            continue
        if is_flat_piece(param):  # FSDP1 moves the gradients about
            continue
        size = local_part(grad).numel()
        if 0 < size <= _SMALL:
            yield param
        elif size:
            large.append((size, param))
    yield from (param for _, param in sorted(large, key=lambda each: each[0]))


def _last_first(groups: list[dict[str, Any]]) -> Iterator[Tensor]:
    return (param for group in reversed(groups) for param in reversed(group["params"]))
