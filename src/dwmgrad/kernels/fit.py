"""Whether a parameter, its gradient and its state belong together, decided before anything moves.

The fast kernels read and write memory by address and trust what they are given. Whatever they rely
on is checked here, in one place and for every kernel: shape, device, dtype, layout, alignment, lazy
bits. What can be made right is made right; the rest is an error that names the parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .coefficients import Blockwise, Buffer
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
        *((of_state(key), form) for key, form in state),
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
    is_plain = type(part) in (Tensor, Parameter)  # for wrappers the answer is an error
    if is_plain and not form.may_expand and torch._debug_has_internal_overlap(part) == 1:
        return (
            "has elements that share memory (as after expand()): give it memory of its own with "
            "contiguous()"
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


def of_state(key: str) -> str:
    return f"state[{key!r}]"
