"""The rule as one pass of compiled C over all tensors: what the CPU runs where it has a compiler.

The C file is compiled once per machine (a fraction of a second); see `compiled`. It runs on the
threads that PyTorch has already (the OpenMP library that it loaded).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
import warnings
from array import array
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import compiled
from .coefficients import Buffer, Coefficients, Tensors

_SOURCE = Path(__file__).with_name("native.c")
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_INT8 = 2
_PIECE = 16 * 1024  # native.c's PIECE


class _Numbers(ctypes.Structure):  # native.c's `numbers`
    _rates = ("step_size", "decay", "keep", "momentum", "eps", "shrink")
    _whole = ("noise", "stochastic_state", "stochastic_params")
    _fields_ = [*((n, ctypes.c_float) for n in _rates), *((n, ctypes.c_uint32) for n in _whole)]


def accepts(param: Tensor, buffer: Buffer) -> bool:
    """Whether this kernel is there, and takes this parameter with a buffer of this kind."""
    if param.device.type != "cpu" or param.dtype not in _TYPES:
        return False
    if isinstance(buffer, Tensor) and buffer.dtype not in _TYPES:
        return False
    return library() is not None


def update(tensors: Tensors, c: Coefficients) -> bool:
    """The rule for dense CPU tensors of one dtype, with buffers of one kind.

    Returns:
        Whether an element was skipped; see `reference.update`.
    """
    rows, pieces = tensors.addresses(_PIECE)
    skipped = _call("dwmgrad_update", tensors, rows, pieces, c)
    # autograd does not see writes through addresses
    torch.autograd.graph.increment_version(tensors.params)
    return bool(skipped)


def squared_norms(tensors: Tensors, c: Coefficients) -> list[float]:
    """As `reference.squared_norms`, for what `update` takes."""
    rows, pieces = tensors.addresses(_PIECE)
    sums = array("d", bytes(8 * pieces))
    _call("dwmgrad_norms", tensors, rows, pieces, c, sums.buffer_info()[0])
    begins = [*rows[6::8], pieces]
    return [sum(sums[begin:end]) for begin, end in itertools.pairwise(begins)]


def _call(
    name: str, tensors: Tensors, rows: list[int], pieces: int, c: Coefficients, *more: int
) -> Any:
    """Calls a function of the library with the tensors and the step's numbers."""
    loaded = library()
    assert loaded is not None
    param, buffer = tensors.params[0], tensors.momentum_buffers[0]
    table = array("q", rows)
    grads = array("q", [grad.data_ptr() for grad in tensors.grads])
    numbers = _Numbers(
        *(c.step_size, c.decay, 1 - c.decay, c.momentum, c.eps, c.shrink),
        *(c.noise & 0xFFFFFFFF, c.stochastic_state, c.stochastic_params),
    )
    return getattr(loaded, name)(
        table.buffer_info()[0],
        grads.buffer_info()[0],
        len(grads),
        pieces,
        _TYPES[param.dtype],
        _TYPES[buffer.dtype] if isinstance(buffer, Tensor) else _INT8,
        ctypes.byref(numbers),
        1 if loaded.is_forked else torch.get_num_threads(),
        *more,
    )


@cache
def library() -> Any | None:
    """The compiled kernel; None where there is none to be had, with a warning that says so once.

    An interrupt leaves nothing behind: the next call begins anew.
    """
    if os.environ.get("DWMGRAD_NATIVE") == "0":
        return None
    try:
        loaded: Any = compiled.load(_SOURCE, _prepare)
        # a forked child has none of its parent's threads, and OpenMP would wait for them
        loaded.is_forked = False
        os.register_at_fork(after_in_child=lambda: setattr(loaded, "is_forked", True))
        return loaded
    except Exception as error:  # whatever compilers, loaders and file systems raise
        warnings.warn(
            f"DWMGrad's CPU kernel could not be built ({error or type(error).__name__}), so its "
            "step runs on PyTorch's operators: equal, but slower. Install gcc, or set "
            "DWMGRAD_NATIVE=0 to silence this.",
            stacklevel=2,
        )
        return None


def _prepare(loaded: Any) -> None:
    """Declares the kernel's arguments and tries it on one number of each kind.

    The number's v and s are such that they stay as they are, and nothing rounds.

    Raises:
        OSError: if the kernel is not there or not right.
    """
    update = getattr(loaded, "dwmgrad_update", None)
    if update is None:
        raise OSError("the library has no dwmgrad_update")
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    update.argtypes = [address, address, size, size, number, number, address, number]
    update.restype = number
    norms = loaded.dwmgrad_norms
    norms.argtypes, norms.restype = [*update.argtypes, address], None
    numbers = _Numbers(0.25, 0.75, 0.25, 0.5, 4.0, 0.5, 0, 0, 0)
    floats = _TYPES.values()
    for kind, state_kind in itertools.product(floats, (*floats, _INT8)):
        state = [b"\x7f", b"\xff"]  # the codes of a block's largest numbers
        if state_kind != _INT8:
            state = [_bytes(0.25, state_kind), _bytes(16, state_kind)]
        before = [_bytes(1, kind), *state, _bytes(0.25), _bytes(16), _bytes(4, kind)]
        cells = [ctypes.create_string_buffer(each, len(each)) for each in before]
        *row, grad = map(ctypes.addressof, cells)
        table, grads = (ctypes.c_int64 * 8)(*row, 1, 0, 0), (ctypes.c_int64 * 1)(grad)
        update(table, grads, 1, 1, kind, state_kind, ctypes.byref(numbers), 1)
        if [cell.raw for cell in cells] != [_bytes(0.25, kind), *before[1:]]:
            raise OSError("the library does not compute what it should")


def _bytes(number: float, kind: int = 0) -> bytes:
    """A number as float32, or as bfloat16, which is the upper half of it."""
    (bits,) = struct.unpack("=I", struct.pack("=f", number))
    return struct.pack("=H", bits >> 16) if kind else struct.pack("=I", bits)
