"""Which tensors of a step share memory: a kernel that writes by address must not find any."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .coefficients import Row
from .fit import Name, of_state, state_of


class Overlaps:
    """Finds tensors that share memory, among all that one step reads and writes.

    What is written rarely moves between two steps, so what was found of it is kept.
    """

    def __init__(self) -> None:
        self._written: list[tuple[int, int]] = []  # where each tensor begins and ends
        self._begins: list[int] = []
        self._ends: list[int] = []  # of all that begin there or before
        self._shared: frozenset[int] = frozenset()

    def find(self, rows: list[Row], name: Name) -> frozenset[int]:
        """Gives each gradient that shares memory with what is written a copy of its own, in `rows`.

        Returns the rows whose parameter shares memory with another row's, as one does that is given
        twice: they must move one after the other.

        Raises:
            RuntimeError: if state shares memory with anything else that is written.
        """
        spans: list[_Span] = []
        read: list[int] = []
        for row, (param, grad, v, s, _) in enumerate(rows):
            for key, part in (("", param), *state_of(v, s).items()):
                begin, size = _memory(part)
                spans.append(_Span(begin, begin + size, row, key, part))
            read += _memory(grad)
        written = [span[:2] for span in spans]
        if written != self._written:
            self._shared = self._sort(spans, rows, name)
            self._written = written
        for place in self.reached(read):
            param, grad, *rest = rows[place]
            rows[place] = param, grad.clone(), *rest  # type: ignore[assignment]
        return self._shared

    def _sort(self, spans: list[_Span], rows: list[Row], name: Name) -> frozenset[int]:
        spans = sorted(span for span in spans if span.begin < span.end)
        shared: set[int] = set()
        open_spans: list[_Span] = []  # that begin before the present one and end after its begin
        for span in spans:
            open_spans = [other for other in open_spans if other.end > span.begin]
            for other in open_spans:
                if not _share_elements(span.tensor, other.tensor):
                    continue
                twice = rows[span.row][0] is rows[other.row][0]
                if (span.key or other.key) and not (twice and span.key == other.key):
                    this, that = (
                        f"{of_state(each.key)} of {name(each.row)}" if each.key else name(each.row)
                        for each in (span, other)
                    )
                    raise RuntimeError(
                        f"{this} shares memory with {that}: give each its own with clone()"
                    )
                shared |= {span.row, other.row}
            open_spans.append(span)
        self._begins = [span.begin for span in spans]
        self._ends = list(accumulate((span.end for span in spans), max))
        return frozenset(shared)

    def reached(self, read: list[int]) -> list[int]:
        """The rows whose gradient shares memory with what `find` saw written.

        `read` has the address and the bytes of each row's gradient.
        """
        found = []
        begins, ends = self._begins, self._ends
        for row, (at, size) in enumerate(zip(read[::2], read[1::2], strict=True)):
            before = bisect_left(begins, at + size)
            if before and ends[before - 1] > at and size:
                found.append(row)
        return found


class _Span(NamedTuple):
    begin: int
    end: int
    row: int
    key: str  # of the state; "" is the parameter itself
    tensor: Tensor


def _memory(tensor: Tensor) -> tuple[int, int]:
    """The address of the first element, and the bytes up to the end of the last one."""
    # elsewhere an address may be a handle, and wrappers have none
    if type(tensor) not in (Tensor, Parameter) or not (tensor.is_cpu or tensor.is_cuda):
        return 0, 0
    if tensor.numel() == 0 or tensor._is_zerotensor():
        return 0, 0
    if tensor.is_contiguous():
        return tensor.data_ptr(), tensor.numel() * tensor.element_size()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def _share_elements(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors whose spans overlap have an element in common; views may interleave."""
    if one.is_contiguous() and other.is_contiguous():
        return True
    unit = math.gcd(one.data_ptr(), one.element_size(), other.data_ptr(), other.element_size())
    return bool(torch.isin(_places_of(one, unit), _places_of(other, unit)).any())


def _places_of(tensor: Tensor, unit: int) -> Tensor:
    """The addresses of all its elements, in units, of which an element has one or several."""
    (begin, size), width = _memory(tensor), tensor.element_size()
    places = torch.arange(0, size, width, device="cpu").as_strided(tensor.shape, tensor.stride())
    parts = torch.arange(0, width, unit, device="cpu")
    return (begin + places.flatten()[:, None] + parts).flatten() // unit
