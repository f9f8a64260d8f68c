"""The rule for all tensors of one kind in one launch of a Triton kernel: what GPUs run.

The kernel finds the tensors through a table of their addresses, and the step's numbers in a vector,
both on the device. So it is compiled once for each combination of dtypes, however the window and
the learning rate move, and neither the host nor the device waits for the other.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..scalars import placed, widest
from . import low_bit, reference
from .coefficients import Buffer, Coefficients, Tensors, storage_of

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_STATES = (*_FLOATS, torch.int8)
_OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}  # the same numbers as on the CPU
_PIECE = 8192  # elements of one program instance: one_launch_triton's BLOCKS · ROWS · SCALED


def accepts(param: Tensor, buffer: Buffer) -> bool:
    """Whether this kernel is there, and takes this parameter with a buffer of this kind.

    `DWMGRAD_TRITON=0` turns it off. On the CPU it runs in Triton's interpreter, for tests: with
    `DWMGRAD_TRITON=1` and `TRITON_INTERPRET=1`.
    """
    kind, asked = storage_of(buffer), os.environ.get("DWMGRAD_TRITON")
    runs = param.device.type in ("cuda", "xpu") and asked != "0"
    if param.device.type == "cpu":
        runs = asked == "1" and os.environ.get("TRITON_INTERPRET") == "1"
    if not runs or param.dtype not in _FLOATS or kind not in _STATES:
        return False
    return is_right(param.device, param.dtype, kind)


def accepts_norms(param: Tensor, buffer: Buffer) -> bool:
    """Whether `squared_norms` takes this parameter with a buffer of this kind."""
    return accepts(param, buffer) and norms_are_right(param.device, param.dtype, storage_of(buffer))


def update(tensors: Tensors, c: Coefficients) -> Tensor:
    """The rule for dense tensors of one device and dtype, with buffers of one kind.

    Returns whether an element was skipped (see `reference.update`): 1 or 0, int32, 0-dim, on the
    device, so that nobody waits for it who does not read it.
    """
    device = tensors.params[0].device
    skipped = torch.zeros((), dtype=torch.int32, device=device)
    vector = _uploaded(numbers_of(c), torch.float32, device)
    launch(tensors, vector, skipped, c, _addresses)
    return skipped


def numbers_of(c: Coefficients, inverse: Any = 1.0, happens: Any = 1.0) -> list[Any]:
    """The 10 numbers that `launch` reads, by default for gradients as they are."""
    rates = [c.step_size, c.decay, 1 - c.decay, c.momentum, c.eps, c.shrink]
    return [*rates, inverse, happens, c.noise % 65536, c.noise // 65536 % 65536]


def launch(
    tensors: Tensors, vector: Tensor, skipped: Tensor, c: Coefficients, addresses: Addresses
) -> None:
    """As `update`, with all numbers on the device already.

    Args:
        vector: float32, 10 numbers: step size, decay, 1 - decay, momentum, eps, shrink, the factor
            that the gradients are multiplied by first, whether anything happens (0: not a byte is
            written), and the lower and the upper 16 bits of `noise`.
        skipped: one int32; becomes 1 if an element is skipped.
        c: for how to round alone.
        addresses: where the table of addresses is kept.
    """
    params = tensors.params
    dtype, kind = params[0].dtype, storage_of(tensors.momentum_buffers[0])
    table, grad_row, pieces = _placed(tensors, addresses)
    if pieces == 0:
        return
    kernel = _triton()
    with _present(params[0].device):
        kernel.update[(pieces,)](
            table,
            grad_row,
            vector,
            skipped,
            len(params),
            PARAM=_named(dtype),
            STATE=_named(kind),
            STOCHASTIC_STATE=c.stochastic_state and kind == torch.bfloat16,
            STOCHASTIC_PARAMS=c.stochastic_params and dtype == torch.bfloat16,
            **_OPTIONS,
        )
    # autograd does not see writes through addresses
    torch.autograd.graph.increment_version(params)


def squared_norms(
    tensors: Tensors, c: Coefficients, inverse: Any = 1.0, addresses: Addresses | None = None
) -> Tensor:
    """As `reference.squared_norms`, for what `accepts` takes, in two launches; one vector.

    `c` is on the host or on the device; without `addresses` the table is kept with all others.
    """
    device, dtype = tensors.params[0].device, tensors.params[0].dtype
    kind = storage_of(tensors.momentum_buffers[0])
    table, grad_row, pieces = _placed(tensors, addresses or _addresses)
    wide = widest(device)
    found = torch.zeros(len(tensors.params), dtype=wide, device=device)
    if pieces == 0:
        return found
    sums = torch.empty(pieces, dtype=wide, device=device)
    vector = _vector([0.0, c.decay, 1 - c.decay, 0.0, c.eps, 0.0, inverse], device)
    kernel = _triton()
    count = len(found)
    with _present(device):
        kernel.norms[(pieces,)](
            table,
            grad_row,
            vector,
            sums,
            count,
            PARAM=_named(dtype),
            STATE=_named(kind),
            WIDE=_named(wide),
            **_OPTIONS,
        )
        kernel.totals[(count,)](table, sums, found, count, pieces, WIDE=_named(wide))
    return found


class Addresses:
    """Rows of whole numbers on the device, kept between steps by what is in them.

    A row is found again by its content alone, so it is right whatever has happened to the tensors
    since, and keeps none of them alive. A step needs two for each bucket; the last `most` stay.
    """

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._rows: dict[tuple, Tensor] = {}  # in the order of their last use
        self._in_graphs: dict[tuple, Tensor] = {}

    def on(self, device: torch.device, numbers: tuple[int, ...]) -> Tensor:
        """The numbers as an int64 tensor on the device; uploaded only if they are new."""
        key = (device, numbers)
        row = self._rows.pop(key, None)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            if row is None:  # as kernel arguments: a captured copy would read host memory later
                row = torch.zeros(len(numbers), dtype=torch.int64, device=device)
                torch._foreach_add_(list(row.unbind()), list(numbers))
                return row  # which holds the numbers only once the graph runs
            self._in_graphs[key] = row  # a graph reads it for as long as it lives
        elif row is None:
            row = _uploaded(numbers, torch.int64, device)
        self._rows[key] = row
        if len(self._rows) > self._most:
            del self._rows[next(iter(self._rows))]
        return row


_addresses = Addresses()


def _placed(tensors: Tensors, addresses: Addresses) -> tuple[Tensor, Tensor, int]:
    """The table of the tensors and the row of their gradients, on the device; and the pieces."""
    device = tensors.params[0].device
    rows, pieces = tensors.addresses(_PIECE)
    grads = tuple([grad.data_ptr() for grad in tensors.grads])
    return addresses.on(device, tuple(rows)), addresses.on(device, grads), pieces


def _present(device: torch.device) -> Any:
    """Triton launches on the present device, whichever that is."""
    is_cpu = device.type == "cpu"
    return contextlib.nullcontext() if is_cpu else getattr(torch, device.type).device(device)


def _vector(numbers: list[Any], device: torch.device) -> Tensor:
    """The numbers in float32 on the device; none of them leaves it."""
    if not any(isinstance(each, Tensor) for each in numbers):
        return _uploaded(numbers, torch.float32, device)
    return torch.stack([placed(each, torch.float32, device) for each in numbers])


def _uploaded(numbers: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    row = torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    return row.to(device, non_blocking=True)


@cache
def _triton() -> Any:
    """The module of the kernels. Its import takes a moment, so it waits until it is needed."""
    from . import one_launch_triton

    return one_launch_triton


def _named(dtype: torch.dtype) -> Any:
    """Triton's type of the same name."""
    return getattr(_triton().tl, str(dtype).removeprefix("torch."))


@cache
def is_right(device: torch.device, dtype: torch.dtype, kind: torch.dtype) -> bool:
    """Whether the kernel can be compiled and does here what the plain loop does.

    Triton needs a recent enough device, driver and C compiler, so each combination is checked once
    against the reference, on 9,312 numbers. Only here and in `norms_are_right` the host waits.
    """
    expected = _trial(device, dtype, kind)
    actual = copy.deepcopy(expected)

    def is_close() -> bool:
        for _ in range(2):  # the second shows what the first has left in the state
            reference.update(expected, _TRIED)
            update(actual, _TRIED)
        off = (actual.params[0].float() - expected.params[0].float()).abs().mean()
        return bool(off < 1e-3)

    return _runs(is_close, device)


@cache
def norms_are_right(device: torch.device, dtype: torch.dtype, kind: torch.dtype) -> bool:
    """As `is_right`, for `squared_norms`."""
    tensors = _trial(device, dtype, kind)

    def is_close() -> bool:
        reference.update(tensors, _TRIED)
        (expected,) = reference.squared_norms(tensors, _TRIED)
        return bool((squared_norms(tensors, _TRIED)[0] / expected - 1).abs() < 1e-3)

    return _runs(is_close, device)


_TRIED = Coefficients(step_size=0.25, decay=0.75, momentum=0.5, eps=1e-8, shrink=1e-2)


def _trial(device: torch.device, dtype: torch.dtype, kind: torch.dtype) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    param, grad = torch.rand(2, 9312, generator=generator, device="cpu").to(device, dtype)
    state: list[Any] = [*low_bit.zeros(param)]
    if kind != torch.int8:
        state = [torch.zeros_like(param, dtype=kind) for _ in range(2)]
    return Tensors([param], [grad], state[:1], state[1:], [0])


def _runs(is_close: Callable[[], bool], device: torch.device) -> bool:
    try:
        return is_close()
    except Exception as error:  # whatever compilers and drivers raise
        if not isinstance(error, ImportError):
            warnings.warn(
                f"DWMGrad's Triton kernel does not run on {device} ({error}), so its step runs on "
                "PyTorch's operators: equal, but slower. DWMGRAD_TRITON=0 silences this.",
                stacklevel=2,
            )
        return False
