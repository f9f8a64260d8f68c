"""What DWMGrad adds to a state dict, and the check before one is loaded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import arguments
from .window import Window

if TYPE_CHECKING:
    from .optimizer import DWMGrad

SCHEMA = 1
PROGRESS = ("window", "last_loss", "observations", "increases", "schema")
"""The window's numbers, equal in every parameter group: plain int, float or None."""
BUFFERS = ("momentum_buffer", "square_avg")
"""The state of a parameter: two tensors of its shape and dtype."""
COMMON = ("initial_window", "max_window", "window_signal", "missing_loss", *PROGRESS)
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


def initial_progress(initial_window: int) -> dict[str, Any]:
    """The numbers of a group that has seen no loss yet."""
    return progress_of(Window(size=initial_window))


def progress_of(window: Window) -> dict[str, Any]:
    """The window as the plain numbers that a group holds."""
    return {
        "window": window.size,
        "last_loss": window.last_loss,
        "observations": window.observations,
        "increases": window.increases,
        "schema": SCHEMA,
    }


def check_form(state_dict: Any) -> None:
    """Raises ValueError unless it has the two parts of a state dict."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError("state_dict must be a dict with the keys 'state' and 'param_groups'")


def check(state_dict: Any, optimizer: DWMGrad) -> None:
    """Raises unless the optimizer can continue from the state dict.

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


def restore_dtypes(state_dict: dict[str, Any], optimizer: DWMGrad) -> None:
    """Gives the loaded buffers the dtypes they were saved with; torch casts to the parameter's."""
    saved = (key for group in state_dict["param_groups"] for key in group["params"])
    params = (param for group in optimizer.param_groups for param in group["params"])
    for key, param in zip(saved, params, strict=True):
        for name, buffer in state_dict["state"].get(key, {}).items():
            if optimizer.state[param][name].dtype != buffer.dtype:
                optimizer.state[param][name] = buffer.to(device=param.device, copy=True)


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
    for name, least in (("window", 1), ("observations", 0), ("increases", 0)):
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
    last_loss = group["last_loss"]
    if last_loss is None:
        return
    if isinstance(last_loss, bool) or not isinstance(last_loss, (int, float)):
        raise TypeError(f"last_loss must be a number or None, got {last_loss!r}")
    try:
        finite = math.isfinite(last_loss)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(f"last_loss must be finite, got {last_loss!r}")


def _check_buffers(key: Any, buffers: Any, param: Tensor) -> None:
    where = f"state_dict['state'][{key!r}]"
    if not isinstance(buffers, dict) or set(buffers) != set(BUFFERS):
        found = sorted(buffers, key=repr) if isinstance(buffers, dict) else type(buffers).__name__
        raise ValueError(f"{where} must have the keys {sorted(BUFFERS)}, got {found}")
    for name, buffer in buffers.items():
        if not isinstance(buffer, Tensor) or not buffer.is_floating_point():
            raise TypeError(f"{where}[{name!r}] must be a real tensor, got {type(buffer).__name__}")
        if buffer.shape != param.shape:
            raise ValueError(
                f"{where}[{name!r}] has the shape {tuple(buffer.shape)}, "
                f"its parameter {tuple(param.shape)}"
            )
        if buffer.layout is not torch.strided or buffer.is_meta:
            raise TypeError(f"{where}[{name!r}] must be a dense tensor with its data")
        values: Any = buffer.detach()
        values = values.to_local() if hasattr(values, "to_local") else values
        if not values.isfinite().all() or (name == "square_avg" and (values < 0).any()):
            least = " at least 0 and" if name == "square_avg" else ""
            raise ValueError(f"{where}[{name!r}] must be{least} finite everywhere")
