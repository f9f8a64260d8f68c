"""The rule as one pass of compiled C over all tensors: what the CPU runs where the library is.

setup.py builds one library for each instruction set; all compute the same bits. They run on the
threads that PyTorch has already (the OpenMP library that it loaded).
"""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import warnings
import zlib
from array import array
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .coefficients import Buffer, Coefficients, Tensors, storage_of

_SOURCE = Path(__file__).with_name("native.c")  # in a checkout
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # native.c's
_PIECE = 16 * 1024  # native.c's PIECE


class _Numbers(ctypes.Structure):  # native.c's `numbers`
    _rates = ("step_size", "decay", "keep", "momentum", "eps", "shrink")
    _whole = ("noise", "stochastic_state", "stochastic_params")
    _fields_ = [*((n, ctypes.c_float) for n in _rates), *((n, ctypes.c_uint32) for n in _whole)]


def accepts(param: Tensor, buffer: Buffer) -> bool:
    """Whether this kernel is there, and takes this parameter with a buffer of this kind."""
    takes = param.dtype in (torch.float32, torch.bfloat16) and storage_of(buffer) in _TYPES
    return takes and param.device.type == "cpu" and library() is not None


def update(tensors: Tensors, c: Coefficients) -> bool:
    """The rule for dense CPU tensors of one dtype, with buffers of one kind.

    Returns whether an element was skipped; see `reference.update`.
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
        _TYPES[storage_of(buffer)],
        ctypes.byref(numbers),
        1 if loaded.is_forked else torch.get_num_threads(),
        *more,
    )


@cache
def library() -> Any | None:
    """The kernel for this CPU; None, with one warning, where there is none to be had.

    `ATEN_CPU_CAPABILITY` chooses another instruction set, as it does for torch.
    """
    if os.environ.get("DWMGRAD_NATIVE") == "0":
        return None
    try:
        loaded = _load(torch.backends.cpu.get_cpu_capability().lower())
    except (OSError, AttributeError, ValueError) as error:  # the last two: a name is not in it
        warnings.warn(
            f"DWMGrad's CPU kernel could not be loaded ({error}), so its step runs on PyTorch's "
            "operators: slower, and rounded otherwise. Install a wheel of dwmgrad for this "
            "platform, or gcc and then dwmgrad again, or set DWMGRAD_NATIVE=0 to silence this.",
            stacklevel=2,
        )
        return None
    # a forked child has none of its parent's threads, and OpenMP would wait for them
    loaded.is_forked = False
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: setattr(loaded, "is_forked", True))
    return loaded


def _load(capability: str) -> Any:
    """The library for what torch calls a CPU's capability, with its arguments declared.

    Raises:
        OSError: if it is not there, does not load, or was built from another source.
    """
    kind = capability if capability in ("avx2", "avx512") else "baseline"
    suffix = ".dll" if sys.platform == "win32" else ".so"
    path = Path(__file__).with_name(f"native_{kind}{suffix}")
    if not path.is_file():
        raise OSError(f"there is no {path}")
    loaded: Any = ctypes.CDLL(str(path))
    built_from = ctypes.c_uint32.in_dll(loaded, "dwmgrad_source").value
    if _SOURCE.is_file() and zlib.crc32(_SOURCE.read_bytes()) != built_from:
        raise OSError(f"{path} was built from another {_SOURCE.name}")
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    update, norms = loaded.dwmgrad_update, loaded.dwmgrad_norms
    update.argtypes = [address, address, size, size, number, number, address, number]
    update.restype = number
    norms.argtypes, norms.restype = [*update.argtypes, address], None
    return loaded
