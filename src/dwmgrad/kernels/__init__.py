"""One update rule, one signature, several ways to run it; the choice between them is made here.

| kernel | chosen by default | right for |
|---|---|---|
| `native` | on the CPU where its library is | float32 and bfloat16, any state |
| `one_launch` | on GPUs where there is Triton | 16 and 32 bits, any state |
| `fused` | where neither is to be had, if it agrees with the loop | one dtype, lr > 0 |
| `foreach` | on accelerators, for what `fused` cannot take | one dtype, 32 bits or more |
| `reference` | for everything else | every tensor |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import foreach, fused, native, one_launch, reference
from .coefficients import Blockwise, Buffer, Coefficients, Row, Tensors, storage_of
from .fit import fitting
from .overlaps import Overlaps

__all__ = ["Blockwise", "Bucket", "Buffer", "Coefficients", "Overlaps", "Row", "Tensors"]
__all__ += ["by_address", "prepare", "run", "run_on_device", "squared_norms"]


class Bucket(NamedTuple):
    """Tensors of one device, one dtype and one kind of state, checked, for one call of a kernel."""

    tensors: Tensors  # at least one row
    flat: bool  # whether a kernel may work by address; see `fit.fitting`


def prepare(
    sets: Sequence[list[Row]],
    overlaps: Overlaps,
    name: Callable[[int], str] = "row {}".format,
) -> list[list[Bucket]]:
    """Checks all that a step is to move, as one, and readies the kernels; nothing moves yet.

    Returns the buckets of each set: there is one for each set of coefficients. `overlaps` is kept
    from step to step; `name` gives a parameter's name by its place in all sets.

    Raises:
        RuntimeError: if tensors do not fit together; it names the parameter.
    """
    rows = list(chain.from_iterable(sets))
    flat: list[bool] = []
    for place, (param, grad, v, s, ordinal) in enumerate(rows):
        fitted, is_flat = fitting(param, grad, v, s, name, place)
        flat.append(is_flat)
        if fitted is not grad:
            rows[place] = param, fitted, v, s, ordinal
    for place in overlaps.find(rows, name):
        flat[place] = False  # the plain loop takes one parameter after the other
    checked = iter(zip(rows, flat, strict=True))
    return [_buckets([next(checked) for _ in own]) for own in sets]


def _buckets(rows: list[tuple[Row, bool]]) -> list[Bucket]:
    found: dict[tuple, list[Row]] = {}
    for row, is_flat in rows:
        param, _, v, *_ = row
        found.setdefault((param.device, param.dtype, storage_of(v), is_flat), []).append(row)
    buckets = [Bucket(Tensors.of(own), is_flat) for (*_, is_flat), own in found.items()]
    for tensors, is_flat in buckets:
        if is_flat:  # loaded, or compiled, while a failure still changes nothing
            by_address(tensors.params[0], tensors.momentum_buffers[0])
    return buckets


def by_address(param: Tensor, buffer: Buffer) -> ModuleType | None:
    """The compiled kernel that takes this parameter with a buffer of this kind, if there is one."""
    return next((kernel for kernel in (native, one_launch) if kernel.accepts(param, buffer)), None)


def run(buckets: Sequence[Bucket], c: Coefficients) -> list[bool | Tensor]:
    """Applies the rule in place, each bucket with the fastest kernel that is right for it.

    Returns for each bucket whether an element was skipped (see `reference.update`): a bool or, so
    that nobody waits for an accelerator, a number on it.
    """
    return [_choose(bucket, c).update(bucket.tensors, c) for bucket in buckets]


def run_on_device(
    buckets: Sequence[Bucket],
    c: Coefficients,
    numbers: Tensor,
    skipped: Tensor,
    addresses: one_launch.Addresses,
) -> None:
    """As `run`, with all numbers on the device of the tensors, without waiting for it.

    For the arguments see `one_launch.launch`; the numbers may be float64.
    """
    for tensors, flat in buckets:
        row = tensors.params[0], tensors.momentum_buffers[0]
        if flat and c.may_fuse and one_launch.accepts(*row):
            one_launch.launch(tensors, numbers.float(), skipped, c, addresses)
        else:
            reference.update_on_device(tensors, numbers, skipped, c)


def squared_norms(
    buckets: Sequence[Bucket],
    c: Coefficients,
    inverse: Any = None,
    addresses: one_launch.Addresses | None = None,
) -> list[tuple[list[float] | Tensor, list[int]]]:
    """For each bucket, `reference.squared_norms` of its parameters, and their ordinals.

    Nothing is written. The norms are numbers, or one vector on the device, which nobody waits for.
    With `inverse`, which the gradients are multiplied by first, all numbers are on the device.
    """
    found: list[tuple[Any, list[int]]] = []
    factor = 1.0 if inverse is None else inverse
    for tensors, flat in buckets:
        row = tensors.params[0], tensors.momentum_buffers[0]
        norms: Any
        if flat and c.may_fuse and inverse is None and native.accepts(*row):
            norms = native.squared_norms(tensors, c)
        elif flat and c.may_fuse and one_launch.accepts_norms(*row):
            norms = one_launch.squared_norms(tensors, c, factor, addresses)
        else:
            norms = torch.stack(reference.squared_norms(tensors, c, factor))
        found.append((norms, tensors.ordinals))
    return found


def _choose(bucket: Bucket, c: Coefficients) -> ModuleType:
    if not bucket.flat:
        return reference
    param, buffer = bucket.tensors.params[0], bucket.tensors.momentum_buffers[0]
    if c.may_fuse and (kernel := by_address(param, buffer)) is not None:
        return kernel
    if storage_of(buffer) != param.dtype or c.stochastic_params or c.stochastic_state:
        return reference
    if not foreach.can_be_squared(bucket.tensors.grads):
        return reference  # which skips those elements
    if c.may_fuse and fused.accepts(param, c):
        return fused
    # On the CPU foreach is slower than the loop: it has no launches to save and writes temporaries.
    wanted = param.device.type != "cpu" if c.use_foreach is None else c.use_foreach
    return foreach if wanted and param.element_size() >= 4 else reference
