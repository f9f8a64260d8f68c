"""What DWMGrad adds to a state dict, and the check before one is loaded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import arguments
from .kernels import narrow
from .presets import PAPER
from .progress import PROGRESS, SCHEMA
from .state import BUFFERS, SCALES, convert, local_part

if TYPE_CHECKING:
    from .optimizer import DWMGrad

_SINCE_2 = {"steps": 0, "state_dtype": None, "stochastic_rounding": False, "capturable": False}
COMMON = (*PAPER, "window_signal", "missing_loss", "capturable", *PROGRESS)
_WRITTEN_BY_OTHERS = {  # torch itself, and its learning rate schedulers
    "param_names",
    "differentiable",
    "initial_lr",
    "max_lr",
    "min_lr",
    "swa_lr",
    "base_momentum",
    "max_momentum",
}


def check_form(state_dict: Any) -> None:
    """Raises ValueError unless it has the two parts of a state dict."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError("state_dict must be a dict with the keys 'state' and 'param_groups'")


def checked(state_dict: Any, optimizer: DWMGrad) -> dict[str, Any]:
    """The state dict in the present schema, if the optimizer can continue from it.

    The optimizer's own `state_dtype`, where it has one, takes the place of the saved one.

    Raises:
        TypeError, ValueError: naming the key, what it holds and what was expected.
    """
    check_form(state_dict)
    groups, state = state_dict["param_groups"], state_dict["state"]
    if not isinstance(groups, list) or not isinstance(state, dict):
        raise TypeError(
            "state_dict['param_groups'] must be a list and state_dict['state'] a dict, got "
            f"{type(groups).__name__} and {type(state).__name__}"
        )
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(
            f"state_dict has {len(groups)} parameter groups, "
            f"the optimizer has {len(optimizer.param_groups)}"
        )
    groups = [
        _upgraded(group, own) if isinstance(group, dict) else group
        for group, own in zip(groups, optimizer.param_groups, strict=True)
    ]
    params: dict[Any, Tensor] = {}
    for index, (group, current) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        _check_group(index, group, current, groups[0])
        params |= zip(group["params"], current["params"], strict=True)
    if len(params) != sum(len(group["params"]) for group in groups):
        raise ValueError("state_dict['param_groups'] names a parameter twice")
    for key, buffers in state.items():
        if key not in params:
            raise ValueError(f"state_dict['state'] has the key {key!r}, which no group names")
        _check_buffers(key, buffers, params[key])
    for group in groups:  # whose buffers are made together, at its first step
        lost = [key for key in group["params"] if params[key].requires_grad and key not in state]
        if lost and any(key in state for key in group["params"]):
            raise ValueError(f"state_dict['state'] has no buffers for the parameters {lost}")
    return {**state_dict, "param_groups": groups}


def _upgraded(group: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """A saved group in the present schema, with what is the present optimizer's own."""
    group = of_present_schema({**group, "capturable": current["capturable"]})
    if current["state_dtype"] is not None and "state_dtype" in group:
        group = {**group, "state_dtype": current["state_dtype"]}
    return group


def of_present_schema(group: dict[str, Any]) -> dict[str, Any]:
    """A group of an older schema with what is new in it; others as they are."""
    written = group.get("schema")
    if written == 1:
        group = {**_SINCE_2, **group}
    if written in (1, 2):
        own = {"mean_loss": group.get("last_loss"), "zero_share": 0.0}
        group = {**PAPER, **own, **group}
    if written in (1, 2, 3):
        group = {"micro_batches": 0, **group, "schema": SCHEMA}
    return group


def restore_precision(state_dict: dict[str, Any], optimizer: DWMGrad) -> None:
    """Gives the loaded buffers the dtypes they were saved with (torch casts to the parameter's),

    and converts them where the optimizer asks for another precision.
    """
    saved = (key for group in state_dict["param_groups"] for key in group["params"])
    own = ((p, group["state_dtype"]) for group in optimizer.param_groups for p in group["params"])
    for key, (param, state_dtype) in zip(saved, own, strict=True):
        buffers = state_dict["state"].get(key)
        if not buffers:
            continue
        state = optimizer.state[param]
        for name, buffer in buffers.items():
            if state[name].dtype != buffer.dtype:
                state[name] = buffer.to(device=param.device, copy=True)
        optimizer.state[param] = convert(state, param, state_dtype)


def _check_group(
    index: int, group: dict[str, Any], current: dict[str, Any], first: dict[str, Any]
) -> None:
    where = f"state_dict['param_groups'][{index}]"
    if not isinstance(group, dict):
        raise TypeError(f"{where} must be a dict, got {type(group).__name__}")
    schema = group.get("schema", SCHEMA)
    if isinstance(schema, bool) or not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise ValueError(
            f"{where}['schema'] is {schema!r}, this version of dwmgrad reads 1 to {SCHEMA}: "
            "update dwmgrad"
        )
    missing = set(current) - set(group) - _WRITTEN_BY_OTHERS
    unknown = set(group) - set(current) - _WRITTEN_BY_OTHERS
    if missing or unknown:
        raise ValueError(
            f"{where} is not a group of this DWMGrad: missing keys {sorted(missing)}, "
            f"unknown keys {sorted(unknown, key=repr)}"
        )
    keys = group["params"]
    if not isinstance(keys, list) or not all(isinstance(key, (int, str)) for key in keys):
        raise TypeError(f"{where}['params'] must be a list of numbers or names")
    if len(group["params"]) != len(current["params"]):
        raise ValueError(
            f"{where} has {len(group['params'])} parameters, the optimizer's group has "
            f"{len(current['params'])}"
        )
    try:
        arguments.check(group)
        _check_progress(group)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None
    for name in COMMON:
        if group[name] != first[name]:
            raise ValueError(
                f"{where}[{name!r}] is {group[name]!r} but {first[name]!r} in the first group: "
                "all groups share one window"
            )


def _check_progress(group: dict[str, Any]) -> None:
    for name, least in (("window", 1), ("observations", 0), ("increases", 0), ("steps", 0)):
        value = group[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        if not least <= value <= arguments.MOST_STEPS:
            bound = f"at least {least}" if value < least else f"at most {arguments.MOST_STEPS}"
            raise ValueError(f"{name} must be {bound}, got {value!r}")
    if group["window"] > group["max_window"]:
        raise ValueError(f"window must be at most {group['max_window']}, got {group['window']!r}")
    if group["increases"] > group["observations"]:
        raise ValueError(f"increases must be at most observations, got {group['increases']!r}")
    for name in ("last_loss", "mean_loss"):
        if group[name] is not None:
            _check_finite(name, group[name], "a number or None")
    _check_finite("micro_batches", group["micro_batches"], "a number")
    if group["micro_batches"] < 0:
        raise ValueError(f"micro_batches must be at least 0, got {group['micro_batches']!r}")
    _check_finite("zero_share", group["zero_share"], "a number")
    if not 0 <= group["zero_share"] <= 1:
        raise ValueError(f"zero_share must be in [0, 1], got {group['zero_share']!r}")


def _check_finite(name: str, value: Any, kind: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(f"{name} must be finite, got {value!r}")


def _check_buffers(key: Any, buffers: Any, param: Tensor) -> None:
    where = f"state_dict['state'][{key!r}]"
    keys = set(buffers) if isinstance(buffers, dict) else set()
    if keys != set(BUFFERS) and keys != {*BUFFERS, *SCALES}:
        found = sorted(keys, key=repr) if isinstance(buffers, dict) else type(buffers).__name__
        raise ValueError(f"{where} must have the keys {sorted(BUFFERS)}, got {found}")
    narrows = len(keys) > len(BUFFERS)
    for name, buffer in buffers.items():
        if not isinstance(buffer, Tensor) or buffer.is_complex():
            raise TypeError(f"{where}[{name!r}] must be a real tensor, got {type(buffer).__name__}")
        dtypes, shape = _form_of(name, narrows, param)
        if buffer.dtype not in dtypes:
            raise TypeError(
                f"{where}[{name!r}] must be a real tensor of {' or '.join(map(str, dtypes))}, "
                f"got {buffer.dtype}"
            )
        if buffer.shape != shape:
            raise ValueError(
                f"{where}[{name!r}] has the shape {tuple(buffer.shape)}, its parameter "
                f"{tuple(param.shape)}, which asks for {shape}"
            )
        if buffer.layout is not torch.strided or buffer.is_meta:
            raise TypeError(f"{where}[{name!r}] must be a dense tensor with its data")
        values = local_part(buffer.detach())
        positive = name != "momentum_buffer"
        if not values.isfinite().all() or (positive and (values < 0).any()):
            least = " at least 0 and" if positive else ""
            raise ValueError(f"{where}[{name!r}] must be{least} finite everywhere")


def _form_of(
    name: str, narrows: bool, param: Tensor
) -> tuple[tuple[torch.dtype, ...], tuple[int, ...]]:
    """The dtypes and the shape that a buffer may have."""
    if name in SCALES:
        return (torch.float32,), (-(-param.numel() // narrow.BLOCK),)
    if narrows:
        return (torch.int8 if name == "momentum_buffer" else torch.uint8,), tuple(param.shape)
    floats = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return floats, tuple(param.shape)
