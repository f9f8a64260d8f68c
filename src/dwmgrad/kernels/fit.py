"""Whether a parameter, its gradient and its state belong together, decided before anything moves.

The fast kernels read and write memory by address and trust what they are given. Whatever they rely
on is checked here, in one place and for every kernel: shape, device, dtype, layout, alignment, lazy
bits, overlap. What can be made right is made right; the rest is an error that names the parameter.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .coefficients import Blockwise, Buffer, Row, parts_of
from .low_bit import BLOCK

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


class Form(NamedTuple):
    """What a tensor of a parameter must be."""

    shape: torch.Size
    dtypes: tuple[torch.dtype, ...]
    contiguous: bool = False
    may_expand: bool = False  # its elements may share memory: it is only read


@lru_cache(maxsize=1024)
def forms_of(shape: torch.Size, blockwise: bool) -> dict[str, Form]:
    """The forms of a parameter's state by its keys, in floats or in 8 bits."""
    if not blockwise:
        return dict.fromkeys(BUFFERS, Form(shape, STATE_DTYPES))
    codes = (Form(shape, (dtype,), contiguous=True) for dtype in (torch.int8, torch.uint8))
    blocks = torch.Size([-(-shape.numel() // BLOCK)])
    scales = Form(blocks, (torch.float32,), contiguous=True)
    return dict(zip(BUFFERS + SCALES, (*codes, scales, scales), strict=True))


@lru_cache(maxsize=1024)
def _forms(shape: torch.Size, dtype: torch.dtype, blockwise: bool) -> list[tuple[str, Form]]:
    """Of the parameter, its gradient and its state: how an error calls it, and its form."""
    own = (dtype,) if dtype.is_floating_point else STATE_DTYPES
    state = forms_of(shape, blockwise).items()
    return [
        ("the data", Form(shape, own)),
        ("the gradient", Form(shape, (*STATE_DTYPES, dtype), may_expand=True)),
        *((_of_state(key), form) for key, form in state),
    ]


def misfit(part: Tensor, param: Tensor, form: Form) -> str | None:
    """What is wrong with a tensor of a parameter, as the end of a sentence; None if nothing is."""
    if part.layout is not torch.strided:
        return (
            f"is {part.layout}, and DWMGrad takes dense gradients, parameters and state: build the "
            "embedding with sparse=False"
        )
    if part.shape != form.shape:
        return (
            f"has the shape {tuple(part.shape)}, the parameter {tuple(param.shape)}, which asks "
            f"for {tuple(form.shape)}"
        )
    if part.dtype not in form.dtypes:
        return f"has the dtype {part.dtype}, and should have {' or '.join(map(str, form.dtypes))}"
    # for wrappers the answer is an error
    if not form.may_expand and type(part) in (Tensor, Parameter):
        if torch._debug_has_internal_overlap(part) == 1:
            return (
                "has elements that share memory (as after expand()): give it memory of its own "
                "with contiguous()"
            )
    if form.contiguous and not part.is_contiguous():
        return f"must be contiguous, got the strides {part.stride()}"
    return None


def fitting(
    param: Tensor, grad: Tensor, v: Buffer, s: Buffer, name: Name, place: int
) -> tuple[Tensor, bool]:
    """Checks one parameter's tensors, all of them of this rank alone; see `Tensors`.

    Returns:
        The gradient, without lazy bits, and whether one flat loop over memory visits the same
        element of all of them, so that a kernel may work by address.

    Raises:
        RuntimeError: if they cannot be used together; it has the `name` of the `place`.
    """
    state = state_of(v, s)
    blockwise = len(state) > len(BUFFERS)
    if not (blockwise or isinstance(v, Tensor) and isinstance(s, Tensor)):
        raise RuntimeError(f"{name(place)} has one half of its state alone. {_REMEDY}")
    device, tensors = param.device, [param, grad, *state.values()]
    forms = _forms(param.shape, param.dtype, blockwise)
    for part, (what, form) in zip(tensors, forms, strict=True):
        wrong = misfit(part, param, form)
        if wrong is None and part.device != device:
            wrong = (
                f"is on {part.device}, the parameter on {device}. Move the model before the "
                "optimizer's first step"
            )
        if wrong is not None:
            raise RuntimeError(f"{what} of {name(place)} {wrong}. {_REMEDY}")
    if grad._is_zerotensor():  # it has no memory
        grad = torch.zeros_like(param)
    tensors[1] = grad = grad.resolve_neg()
    if grad.dtype != param.dtype or not all(map(_has_address, tensors)):
        return grad, False
    if blockwise:
        return grad, param.is_contiguous() and grad.is_contiguous()
    return grad, tensors[2].dtype == tensors[3].dtype and _is_flat(tensors)


def state_of(v: Any, s: Any) -> dict[str, Any]:
    """A parameter's buffers, or their parts, by their keys."""
    if isinstance(v, Blockwise) and isinstance(s, Blockwise):
        return dict(zip(BUFFERS + SCALES, (v.codes, s.codes, v.scales, s.scales), strict=True))
    return dict(zip(BUFFERS, (v, s), strict=True))


def _has_address(tensor: Tensor) -> bool:
    """Whether C may read it by its address."""
    is_plain = type(tensor) in (Tensor, Parameter) and not tensor.is_neg()
    return is_plain and tensor.data_ptr() % tensor.element_size() == 0


def _is_flat(tensors: list[Tensor]) -> bool:
    """Whether one loop over memory visits the same element of all of them."""
    if all(each.is_contiguous() for each in tensors):
        return True
    # The state was made by zeros_like, so it is dense, and with it whatever has its strides.
    # torch.optim.AdamW(fused=True) forgets this check on the CPU and mixes the elements up.
    first = tensors[0]
    if any(each.stride() != first.stride() for each in tensors):
        return False
    expected = 1
    for stride, size in sorted(zip(first.stride(), first.shape, strict=True)):
        if size > 1 and stride != expected:
            return False  # a gap
        expected *= size
    return True


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
        """Gives each gradient that shares memory with what is written a copy of its own, in `rows`.

        Returns the rows whose parameter shares memory with another row's, as one does that is given
        twice: they must move one after the other.

        Raises:
            RuntimeError: if state shares memory with anything else that is written.
        """
        written: list[int] = []  # address and bytes of each tensor, row by row
        read: list[int] = []
        for param, grad, v, s, _ in rows:
            written += chain.from_iterable(map(_memory, (param, *parts_of(v), *parts_of(s))))
            read += _memory(grad)
        if written != self._written:
            self._shared = self._sort(rows, name)
            self._written = written
        for place in self.reached(read):
            param, grad, *rest = rows[place]
            rows[place] = param, grad.clone(), *rest  # type: ignore[assignment]
        return self._shared

    def _sort(self, rows: list[Row], name: Name) -> frozenset[int]:
        spans = sorted(
            _Span(begin, begin + size, row, key, part)
            for row, (param, _, v, s, _) in enumerate(rows)
            for key, part in {"": param, **state_of(v, s)}.items()
            for begin, size in [_memory(part)]
            if size
        )
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
                        f"{_of_state(each.key)} of {name(each.row)}" if each.key else name(each.row)
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


def _of_state(key: str) -> str:
    return f"state[{key!r}]"
