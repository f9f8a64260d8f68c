"""Whether a parameter, its gradient and its state belong together, decided before anything moves.

The fast kernels read and write memory by address and trust what they are given. Whatever they rely
on is held here, in one place and for every kernel: shape, device, dtype, layout, alignment, lazy
bits, overlap. What can be made right is made right; the rest is an error that names the parameter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from . import narrow
from .coefficients import Blockwise, Buffer, Row

BUFFERS = ("momentum_buffer", "square_avg")
"""The keys of v and s in a parameter's state."""
SCALES = ("momentum_scale", "square_scale")
"""Those of the scales of 8-bit buffers."""
STATE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Name = Callable[[int], str]

_REMEDY = (
    "If the parameter was replaced on purpose (resize_token_embeddings() keeps it and changes its "
    "shape), build a new optimizer, or drop its state: del optimizer.state[parameter]"
)


def fitting(
    param: Tensor, grad: Tensor, v: Buffer, s: Buffer, name: Name, place: int
) -> tuple[Tensor, bool]:
    """Checks one parameter's tensors, all of them of this rank alone.

    Args:
        param, grad, v, s: θ, g and the state; see `Tensors`.
        name: gives the name of the parameter at a place, for errors.
        place: the parameter's.

    Returns:
        The gradient, without lazy bits, and whether one flat loop over memory visits the same
        element of all of them, so that a kernel may work by address.

    Raises:
        RuntimeError: if they cannot be used together.
    """
    for what, part, shape, dtypes in _expected(param, grad, v, s, name, place):
        if part.layout is not torch.strided:
            raise RuntimeError(
                f"DWMGrad takes dense gradients, parameters and state, got {part.layout} as {what} "
                f"of {name(place)}: build the embedding with sparse=False"
            )
        if part.shape != shape:
            raise RuntimeError(
                f"{what} of {name(place)} has the shape {tuple(part.shape)}, the parameter "
                f"{tuple(param.shape)}, which asks for {tuple(shape)}. {_REMEDY}"
            )
        if part.device != param.device:
            raise RuntimeError(
                f"{what} of {name(place)} is on {part.device}, the parameter on {param.device}. "
                f"Move the model before the optimizer's first step. {_REMEDY}"
            )
        if part.dtype not in dtypes:
            raise RuntimeError(
                f"{what} of {name(place)} has the dtype {part.dtype}, and should have "
                f"{' or '.join(map(str, dtypes))}. {_REMEDY}"
            )
        plain = type(part) in (Tensor, Parameter)
        if what != "the gradient" and plain and torch._debug_has_internal_overlap(part) == 1:
            raise RuntimeError(
                f"{what} of {name(place)} has elements that share memory (as after expand()), so "
                "it cannot be written to: give it memory of its own with contiguous()"
            )
    if grad._is_zerotensor():  # it has no memory
        grad = torch.zeros_like(param)
    if grad.is_neg():
        grad = grad.resolve_neg()
    tensors = [param, grad, *_parts(v), *_parts(s)]
    plain = all(type(each) in (Tensor, Parameter) and not each.is_neg() for each in tensors)
    if not plain or grad.dtype != param.dtype:
        return grad, False
    if any(each.data_ptr() % each.element_size() for each in tensors):
        return grad, False  # C takes no such address, PyTorch does
    if isinstance(v, Blockwise) and isinstance(s, Blockwise):
        if not all(each.is_contiguous() for each in (*v, *s)):
            raise RuntimeError(f"8-bit state of {name(place)} must be contiguous")
        return grad, param.is_contiguous() and grad.is_contiguous()
    assert isinstance(v, Tensor) and isinstance(s, Tensor)
    if v.dtype != s.dtype:
        return grad, False
    if all(each.is_contiguous() for each in tensors):
        return grad, True
    # The state was made by zeros_like, so it is dense, and with it whatever has its strides.
    # torch.optim.AdamW(fused=True) forgets this check on the CPU and mixes the elements up.
    same = param.stride() == grad.stride() == v.stride() == s.stride()
    return grad, same and _is_dense(param)


def _expected(
    param: Tensor, grad: Tensor, v: Buffer, s: Buffer, name: Name, place: int
) -> Iterator[tuple[str, Tensor, torch.Size, tuple[torch.dtype, ...]]]:
    """What there is of each parameter: its name, itself, the shape and the dtypes it may have."""
    shape = param.shape
    yield "the data", param, shape, (param.dtype,) if param.is_floating_point() else STATE_DTYPES
    yield "the gradient", grad, shape, (*STATE_DTYPES, param.dtype)
    if isinstance(v, Blockwise) and isinstance(s, Blockwise):
        scales = torch.Size([-(-param.numel() // narrow.BLOCK)])
        for key, scale_key, buffer, code in zip(
            BUFFERS, SCALES, (v, s), (torch.int8, torch.uint8), strict=True
        ):
            yield f"state[{key!r}]", buffer.codes, shape, (code,)
            yield f"state[{scale_key!r}]", buffer.scales, scales, (torch.float32,)
    elif isinstance(v, Tensor) and isinstance(s, Tensor):
        yield f"state[{BUFFERS[0]!r}]", v, shape, STATE_DTYPES
        yield f"state[{BUFFERS[1]!r}]", s, shape, STATE_DTYPES
    else:
        raise RuntimeError(f"{name(place)} has one half of its state alone. {_REMEDY}")


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill their memory without gaps, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _parts(buffer: Buffer) -> tuple[Tensor, ...]:
    return tuple(buffer) if isinstance(buffer, Blockwise) else (buffer,)


class Overlaps:
    """Finds tensors that share memory, among all that one step reads and writes.

    What is written rarely moves between two steps, so what was found of it is kept.
    """

    def __init__(self) -> None:
        self._written: list[int] = []
        self._begins: list[int] = []
        self._ends: list[int] = []  # of all that begin there or before
        self._shared: frozenset[int] = frozenset()

    def find(self, rows: list[Row], name: Name) -> frozenset[int]:
        """Gives each gradient that shares memory with what is written a copy of its own.

        Args:
            rows: all that the step moves; gradients are replaced in it.
            name: gives the name of a row's parameter, for errors.

        Returns:
            The rows whose parameter shares memory with another row's, as one does that is given
            twice: they must move one after the other.

        Raises:
            RuntimeError: if state shares memory with anything else that is written.
        """
        written: list[int] = []  # address and bytes of each tensor, row by row
        read: list[int] = []
        for param, grad, v, s, _ in rows:
            written += chain.from_iterable(map(_span, (param, *_parts(v), *_parts(s))))
            read += _span(grad)
        if written != self._written:
            self._shared = self._sort(rows, name)
            self._written = written
        for place in self.reached(read):
            param, grad, *rest = rows[place]
            rows[place] = param, grad.clone(), *rest  # type: ignore[assignment]
        return self._shared

    def _sort(self, rows: list[Row], name: Name) -> frozenset[int]:
        spans = sorted(_spans(rows), key=lambda span: span[:3])
        shared: set[int] = set()
        open_spans: list[_Span] = []  # that begin before the present one and end after its begin
        for span in spans:
            open_spans = [other for other in open_spans if other.end > span.begin]
            for other in open_spans:
                if not _share_elements(span.tensor, other.tensor):
                    continue
                twice = rows[span.row][0] is rows[other.row][0]
                if (span.key or other.key) and not (twice and span.key == other.key):
                    raise RuntimeError(
                        f"{_called(span.key, name(span.row))} shares memory with "
                        f"{_called(other.key, name(other.row))}: give each its own with clone()"
                    )
                shared |= {span.row, other.row}
            open_spans.append(span)
        self._begins = [span.begin for span in spans]
        self._ends = list(accumulate((span.end for span in spans), max))
        return frozenset(shared)

    def reached(self, read: list[int]) -> list[int]:
        """The rows whose gradient shares memory with what `find` saw written.

        Args:
            read: address and bytes of each row's gradient.
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
    tensor: Tensor
    key: str  # of the state; "" is the parameter itself


def _spans(rows: list[Row]) -> Iterator[_Span]:
    for row, (param, _, v, s, _) in enumerate(rows):
        parts = {"": param}
        for key, scale_key, buffer in zip(BUFFERS, SCALES, (v, s), strict=True):
            parts |= zip((key, scale_key), _parts(buffer), strict=False)
        for key, part in parts.items():
            begin, size = _span(part)
            if size:
                yield _Span(begin, begin + size, row, part, key)


def _span(tensor: Tensor) -> tuple[int, int]:
    """The address of the first element, and the bytes up to the end of the last one."""
    # elsewhere an address may be a handle, and wrappers have none
    if type(tensor) not in (Tensor, Parameter) or not (tensor.is_cpu or tensor.is_cuda):
        return 0, 0
    if tensor.numel() == 0 or tensor._is_zerotensor():
        return 0, 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def _share_elements(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors whose spans overlap have an element in common; views may interleave."""
    if one.is_contiguous() and other.is_contiguous():
        return True
    return not _bytes_of(one).isdisjoint(_bytes_of(other))


def _bytes_of(tensor: Tensor) -> set[int]:
    places = torch.zeros(tensor.shape, dtype=torch.int64, device="cpu")
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        steps = torch.arange(size, dtype=torch.int64, device="cpu") * stride
        places += steps.view(-1, *[1] * (tensor.dim() - dim - 1))
    width, begin = tensor.element_size(), tensor.data_ptr()
    return {
        begin + place * width + byte for place in places.flatten().tolist() for byte in range(width)
    }


def _called(what: str, name: str) -> str:
    return f"state[{what!r}] of {name}" if what else name
