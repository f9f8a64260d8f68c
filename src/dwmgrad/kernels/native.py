"""The rule as one pass of compiled C over all tensors: what the CPU runs where it has a compiler.

The C file is compiled once per machine (a fraction of a second) and kept in the user's cache
folder. It runs on the threads that PyTorch has already (the OpenMP library that it loaded).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .coefficients import Blockwise, Buffer, Coefficients, Tensors

_SOURCE = Path(__file__).with_name("native.c")
# No -ffast-math: NaN and infinities must be seen. No contraction: the same numbers on every CPU.
_FLAGS = (
    "-O3 -march=native -fopenmp -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=off"
).split()
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_INT8 = 2
_PIECE = 16 * 1024  # native.c's PIECE


class _Numbers(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_float) for name in ("step_size", "decay", "keep", "momentum", "eps")),
        ("shrink", ctypes.c_float),
        ("noise", ctypes.c_uint32),
        ("dither_state", ctypes.c_int32),
        ("dither_params", ctypes.c_int32),
    ]


def accepts(param: Tensor, buffer: Buffer) -> bool:
    """Whether this kernel is there, and takes this parameter with a buffer of this kind."""
    if param.device.type != "cpu" or param.dtype not in _TYPES:
        return False
    if isinstance(buffer, Tensor) and buffer.dtype not in _TYPES:
        return False
    return library() is not None


def update(tensors: Tensors, c: Coefficients) -> bool:
    """The rule for dense CPU tensors of one dtype, with buffers of one kind; True if it held one.

    See `reference.update` for what it means to hold an element.
    """
    loaded = library()
    assert loaded is not None
    param, buffer = tensors.params[0], tensors.momentum_buffers[0]
    rows: list[int] = []
    pieces = 0
    for p, g, v, s, ordinal in zip(*tensors, strict=True):
        size = p.numel()
        if isinstance(v, Blockwise):
            states = [
                v.codes.data_ptr(),
                s.codes.data_ptr(),
                v.scales.data_ptr(),
                s.scales.data_ptr(),
            ]
        else:
            states = [v.data_ptr(), s.data_ptr(), 0, 0]
        rows += [p.data_ptr(), g.data_ptr(), *states, size, pieces, ordinal]
        pieces += -(-size // _PIECE)
    numbers = _Numbers(
        c.step_size, c.decay, 1 - c.decay, c.momentum, c.eps, c.shrink,
        c.noise & 0xFFFFFFFF, c.dither_state, c.dither_params,
    )  # fmt: skip
    held = loaded.dwmgrad_update(
        (ctypes.c_int64 * len(rows))(*rows),
        len(tensors.params),
        pieces,
        _TYPES[param.dtype],
        _INT8 if isinstance(buffer, Blockwise) else _TYPES[buffer.dtype],
        ctypes.byref(numbers),
        torch.get_num_threads(),
    )
    # autograd does not see writes through addresses
    torch.autograd.graph.increment_version(tensors.params)
    return bool(held)


@cache
def library() -> Any | None:
    """The compiled kernel; None where there is no compiler, with a warning that says so once."""
    if os.environ.get("DWMGRAD_NATIVE") == "0":
        return None
    try:
        path = _built()
        loaded = ctypes.CDLL(str(path))
        loaded.dwmgrad_update.argtypes = [
            ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_int,
            ctypes.c_void_p, ctypes.c_int,
        ]  # fmt: skip
        loaded.dwmgrad_update.restype = ctypes.c_int
    except (OSError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"DWMGrad's CPU kernel could not be built ({_reason(error)}), so its step runs on "
            "PyTorch's operators: equal, but slower. Install gcc, or set DWMGRAD_NATIVE=0 to "
            "silence this.",
            stacklevel=2,
        )
        return None
    return loaded


def _built() -> Path:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if compiler is None or os.name == "nt":
        raise OSError("no C compiler found")
    folder = _folder()
    # a home may be shared by machines of different kinds
    kind = [_SOURCE.read_text(), compiler, *_FLAGS, platform.machine(), _cpu_flags()]
    name = hashlib.sha256("\0".join(kind).encode()).hexdigest()[:16]
    path = folder / f"native-{name}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch, "native.so")
            # compiled with OpenMP but linked without: PyTorch has brought its own library
            command = [*compiler.split(), *_FLAGS, "-c", str(_SOURCE), "-o", f"{built}.o"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            command = [*compiler.split(), "-shared", f"{built}.o", "-o", str(built), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            os.replace(built, path)
    return path


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base, "dwmgrad")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):
        return Path(tempfile.mkdtemp(prefix="dwmgrad-"))
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"others may write into {folder}: chmod go-w {folder}")
    if not os.access(folder, os.W_OK):
        return Path(tempfile.mkdtemp(prefix="dwmgrad-"))
    return folder


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return (error.stderr or "").strip().splitlines()[-1:][0] if error.stderr else str(error)
    return str(error)
