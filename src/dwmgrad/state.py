"""What the optimizer keeps per parameter, in the precision that was asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels import low_bit
from .kernels.coefficients import Blockwise
from .kernels.fit import BUFFERS, SCALES, state_of

STATE_DTYPES = ("float32", "bfloat16", "int8")
ZERO_SHARE = "zero_share"
"""The share that the zeros from which s began still have in it: float64, 0-dim, on the host.

It is 1 at first where s is corrected for them: with `bias_correction`, and for a parameter that
begins later than the optimizer, whose window may be long by then. Else it is 0, and there all the
same: sharded checkpoints ask a new optimizer for the keys that they load. It is replaced at every
step, never written to, so that parameters may share it."""
_MARK = "_dwmgrad_state_dtype"


def keep_in_float32(module: torch.nn.Module) -> None:
    """Marks the embeddings of a model: `state_dtype="int8"` leaves their state in float32.

    The rows of an embedding get gradients of very different sizes, many of them none. The names for
    `--optim` call this by themselves; elsewhere call it before the optimizer's first step, or give
    the embeddings a parameter group with `state_dtype=torch.float32`.
    """
    for part in module.modules():
        if isinstance(part, (torch.nn.Embedding, torch.nn.EmbeddingBag)):
            setattr(part.weight, _MARK, "float32")


@torch.inference_mode(False)  # an inference tensor cannot be written to afterwards
def create(param: Tensor, state_dtype: str | None, corrected: bool = False) -> dict[str, Any]:
    """The state of a parameter before its first step.

    Args:
        param: of any shape; a DTensor gets DTensors.
        state_dtype: one of `STATE_DTYPES`; None is the parameter's own dtype, and float32 for a
            float16 parameter.
        corrected: whether s is corrected for the zeros that it begins from.

    Raises:
        ValueError: for 8-bit state of a parameter that is cut into shards.
    """
    kind = stored(param, state_dtype)
    share = {ZERO_SHARE: share_of(1.0 if corrected else 0.0)}
    if kind != "int8":
        dtype = getattr(torch, kind)
        return {name: torch.zeros_like(param, dtype=dtype) for name in BUFFERS} | share
    return state_of(*low_bit.zeros(param)) | share


def share_of(number: float) -> Tensor:
    """The number as a state holds it."""
    return torch.tensor(number, dtype=torch.float64, device="cpu")


def zero_share_of(state: dict[str, Any]) -> float:
    """The share that a state holds; 0 without one."""
    return float(state.get(ZERO_SHARE, 0.0))


def buffers_of(state: dict[str, Any]) -> tuple[Any, Any]:
    """v and s of a parameter's state, of this rank's shard; None for what is not there."""
    v, s = (local_part(state.get(name)) for name in BUFFERS)
    if v is not None and v.dtype == torch.int8 and s is not None and SCALES[0] in state:
        return Blockwise(v, state[SCALES[0]]), Blockwise(s, state[SCALES[1]])
    return v, s


def local_part(tensor: Any) -> Tensor:
    """The shard of a DTensor that this rank holds; a plain tensor as it is."""
    if type(tensor) is Tensor or not hasattr(tensor, "to_local"):
        return tensor
    return tensor.to_local()


def is_flat_piece(param: Any) -> bool:
    """Whether it is of FSDP1: each rank has a piece."""
    return getattr(param, "_fsdp_flattened", False)


def convert(state: dict[str, Any], param: Tensor, state_dtype: str | None) -> dict[str, Any]:
    """The same state in another precision; None leaves it as it is, but for float16.

    Earlier versions wrote float16 state of float16 parameters: it becomes float32.
    """
    present = "int8" if SCALES[0] in state else _name_of(state[BUFFERS[0]].dtype)
    if state_dtype is None:
        kind = "float32" if present == "float16" else present
    else:
        kind = stored(param, state_dtype)
    if kind == present:
        return state
    rest = {name: value for name, value in state.items() if name not in BUFFERS + SCALES}
    wide = {name: state[name] for name in BUFFERS}
    if present == "int8":
        wide = dict(zip(BUFFERS, map(low_bit.decode, buffers_of(state)), strict=True))
    if kind != "int8":
        return rest | {name: buffer.to(getattr(torch, kind)) for name, buffer in wide.items()}
    new = create(param, state_dtype) | rest
    half = torch.full(param.shape, 0x8000, dtype=torch.int64, device=param.device)
    for buffer, values in zip(buffers_of(new), wide.values(), strict=True):
        low_bit.encode(buffer, values.float(), half)  # half way up is the nearest level
    return new


def stored(param: Tensor, state_dtype: str | None) -> str:
    """In which precision a parameter's state is kept; raises as `create`."""
    if state_dtype == "int8":
        if hasattr(param, _MARK) or param.numel() < low_bit.SMALLEST:
            return "float32"
        if hasattr(param, "to_local") or is_flat_piece(param):
            raise ValueError(
                'state_dtype="int8" does not take parameters that are cut into shards (FSDP, '
                "tensor parallelism), as its blocks would not be those of the whole tensor: use "
                "state_dtype=torch.bfloat16"
            )
        return "int8"
    if state_dtype is None and param.dtype == torch.float16:
        return "float32"  # in float16 the square of a gradient below 1.7e-4 is 0
    return state_dtype or _name_of(param.dtype)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
