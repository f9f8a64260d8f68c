"""What DWMGrad adds to a state dict, and the check before one is loaded."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import arguments
from .kernels import narrow
from .progress import PROGRESS, SCHEMA
from .rule import PAPER
from .state import BUFFERS, SCALES, ZERO_SHARE, convert, local_part, share_of

if TYPE_CHECKING:
    from .optimizer import DWMGrad

_SINCE_2 = {"steps": 0, "state_dtype": None, "stochastic_rounding": False, "capturable": False}
_TOLD = (*(name for name in PAPER if name != "initial_window"), "window_signal", "missing_loss",
         "momentum", "eps", "maximize", "state_dtype", "stochastic_rounding")  # fmt: skip
COMMON = (*PAPER, "window_signal", "missing_loss", "capturable", *PROGRESS)


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
    shares = [share_of_old_schema(group) for group in groups]
    groups = _repaired(
        [
            _upgraded(group, own) if isinstance(group, dict) else group
            for group, own in zip(groups, optimizer.param_groups, strict=True)
        ]
    )
    ours = {*optimizer.defaults, "params"} - {"differentiable"}  # which torch adds
    params: dict[Any, Tensor] = {}
    shared: dict[Any, float] = {}
    for index, (group, current) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        _check_group(index, group, current, groups[0], ours)
        for key, param in zip(group["params"], current["params"], strict=True):
            if params.setdefault(key, param) is not param:
                raise ValueError(
                    f"state_dict['param_groups'] has one key, {key!r}, for two parameters"
                )
        shared |= dict.fromkeys(group["params"], shares[index])
    checked_state = {}
    for key, own in state.items():
        if key not in params:
            if isinstance(own, dict) and set(BUFFERS) & set(own):
                raise ValueError(f"state_dict['state'] has the key {key!r}, which no group names")
            checked_state[key] = own  # something that others keep there
            continue
        checked_state[key] = _checked_own(key, own, params[key], shared[key])
    _refuse_shared({key: checked_state[key] for key in params if key in checked_state})
    has_buffers = any(BUFFERS[0] in checked_state.get(key, {}) for key in params)
    if (
        groups
        and groups[0]["steps"]
        and not has_buffers
        and any(p.requires_grad for p in params.values())
    ):
        warnings.warn(
            f"the state dict has made {groups[0]['steps']} steps and has no state for any "
            "parameter: the window goes on, momentum and mean squares begin anew",
            stacklevel=5,
        )
    _tell_of_differences(groups, state_dict["param_groups"], optimizer)
    return {**state_dict, "param_groups": groups, "state": checked_state}


def _refuse_shared(state: dict[Any, dict[str, Any]]) -> None:
    """Raises ValueError if two buffers of a state dict are one."""
    seen: dict[int, str] = {}
    for key, own in state.items():
        for name in BUFFERS + SCALES:
            buffer = own.get(name)
            if type(buffer) is Tensor and buffer.numel():
                where = f"state_dict['state'][{key!r}][{name!r}]"
                other = seen.setdefault(buffer.data_ptr(), where)
                if other != where:
                    raise ValueError(f"{where} is the same memory as {other}")


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
        group = {**PAPER, "mean_loss": group.get("last_loss"), **group}
    if written in (1, 2, 3):
        group = {"micro_batches": 0, **group, "schema": SCHEMA}
        group.pop(ZERO_SHARE, None)  # now each parameter has its own
    return group


def share_of_old_schema(group: Any) -> float | None:
    """What a group of schema 3 said for all its parameters; 0, no correction, before; else None."""
    if not isinstance(group, dict) or group.get("schema") not in (1, 2, 3):
        return None
    corrects = group.get("bias_correction") and group["schema"] == 3
    share = group.get(ZERO_SHARE, 0.0) if corrects else 0.0
    _check_share(ZERO_SHARE, share)
    return share


def bring_up(group: dict[str, Any], states: dict[Tensor, dict[str, Any]]) -> None:
    """Brings an optimizer's own group, and its parameters' state, to the present schema."""
    share = share_of_old_schema(group)
    if share is None:
        return  # it is of the present schema
    new = of_present_schema(group)
    group.clear()
    group.update(new)
    for param in group["params"]:
        if BUFFERS[0] in states.get(param, {}):
            states[param][ZERO_SHARE] = share_of(share)


def _repaired(groups: list[Any]) -> list[Any]:
    """Groups of which some are one step behind, as Ctrl-C inside a step once left them, as one."""
    whole = [group for group in groups if isinstance(group, dict) and set(PROGRESS) <= set(group)]
    steps = [group["steps"] for group in whole if type(group["steps"]) is int]
    if not steps or len(steps) != len(groups) or max(steps) - min(steps) != 1:
        return groups  # what is wrong with them is said later
    newest = whole[steps.index(max(steps))]
    return [{**group, **{name: newest[name] for name in PROGRESS}} for group in whole]


def _tell_of_differences(groups: list[Any], saved: list[Any], optimizer: DWMGrad) -> None:
    """One warning that names each setting in which the optimizer and the state dict differ."""
    found: dict[str, str] = {}
    for group, old, current in zip(groups, saved, optimizer.param_groups, strict=True):
        for name in _TOLD:
            theirs, ours = old.get(name, group[name]), current[name]
            if theirs != ours and name not in found:
                wins = "the optimizer's" if group[name] == ours else "the state dict's"
                found[name] = f"{name} is {theirs!r} there and {ours!r} here ({wins} holds)"
    if found:
        warnings.warn(
            f"the state dict and the optimizer have other settings: {'; '.join(found.values())}. "
            "To use a setting of your own, write it into optimizer.param_groups after loading",
            stacklevel=5,
        )


def restore_precision(state_dict: dict[str, Any], optimizer: DWMGrad) -> None:
    """Gives the loaded buffers the dtypes they were saved with (torch casts to the parameter's),

    and converts them where the optimizer asks for another precision.
    """
    saved = (key for group in state_dict["param_groups"] for key in group["params"])
    own = ((p, group["state_dtype"]) for group in optimizer.param_groups for p in group["params"])
    for key, (param, state_dtype) in zip(saved, own, strict=True):
        loaded = state_dict["state"].get(key)
        if not loaded or BUFFERS[0] not in loaded:
            continue
        state = optimizer.state[param]
        for name in BUFFERS + SCALES:
            if name in loaded and state[name].dtype != loaded[name].dtype:
                state[name] = loaded[name].to(device=param.device, copy=True)
        state[ZERO_SHARE] = share_of(float(loaded.get(ZERO_SHARE, 0.0)))
        optimizer.state[param] = convert(state, param, state_dtype)


def _check_group(
    index: int,
    group: dict[str, Any],
    current: dict[str, Any],
    first: dict[str, Any],
    ours: set[str],
) -> None:
    """Raises unless a saved group has the keys that are `ours`, with values that fit.

    Other keys belong to others: to learning rate schedulers, or to loops that name their groups.
    """
    where = f"state_dict['param_groups'][{index}]"
    if not isinstance(group, dict):
        raise TypeError(f"{where} must be a dict, got {type(group).__name__}")
    schema = group.get("schema", SCHEMA)
    if isinstance(schema, bool) or not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise ValueError(
            f"{where}['schema'] is {schema!r}, this version of dwmgrad reads 1 to {SCHEMA}: "
            "update dwmgrad"
        )
    missing = ours - set(group)
    if missing:
        raise ValueError(
            f"{where} is {_maker(group)} of this DWMGrad: missing keys {sorted(missing)}, "
            f"unknown keys {sorted(set(group) - ours, key=repr)}. Go on with the optimizer that "
            "saved it, or begin DWMGrad without its state"
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


def _maker(group: dict[str, Any]) -> str:
    """What a group that is not ours seems to be, by its keys."""
    if "window" in group:
        return "not a group"
    if "betas" in group:
        return "a group of Adam or AdamW, not"
    return "a group of SGD, not" if "nesterov" in group else "a group of another optimizer, not"


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


def _check_share(where: str, share: Any) -> None:
    _check_finite(where, share, "a number")
    if not 0 <= share <= 1:
        raise ValueError(f"{where} must be in [0, 1], got {share!r}")


def _check_finite(name: str, value: Any, kind: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be {kind}, got {value!r}")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(f"{name} must be finite, got {value!r}")


def _checked_own(key: Any, own: Any, param: Tensor, share: float | None) -> Any:
    """One parameter's state, checked; `share` is that of an old schema, where it is one.

    What others keep there is left alone. A parameter may have no state of ours yet.
    """
    where = f"state_dict['state'][{key!r}]"
    if not isinstance(own, dict):
        raise TypeError(f"{where} must be a dict, got {type(own).__name__}")
    ours = {name for name in BUFFERS + SCALES if name in own}
    if not ours:
        return own
    if ours != set(BUFFERS) and ours != {*BUFFERS, *SCALES}:
        raise ValueError(
            f"{where} must have the keys {sorted(BUFFERS)}, got {sorted(own, key=repr)}"
        )
    if share:
        own = {**own, ZERO_SHARE: share_of(share)}
    if ZERO_SHARE in own:
        number = own[ZERO_SHARE]
        if isinstance(number, Tensor) and number.numel() == 1 and not number.is_meta:
            number = number.item()
        _check_share(f"{where}[{ZERO_SHARE!r}]", number)
    narrows = len(ours) > len(BUFFERS)
    for name in sorted(ours):
        _check_buffer(f"{where}[{name!r}]", name, own[name], param, narrows)
    return own


def _check_buffer(where: str, name: str, buffer: Any, param: Tensor, narrows: bool) -> None:
    if not isinstance(buffer, Tensor) or buffer.is_complex():
        raise TypeError(f"{where} must be a real tensor, got {type(buffer).__name__}")
    dtypes, shape = _form_of(name, narrows, param)
    if buffer.dtype not in dtypes:
        raise TypeError(
            f"{where} must be a real tensor of {' or '.join(map(str, dtypes))}, got {buffer.dtype}"
        )
    if buffer.shape != shape:
        raise ValueError(
            f"{where} has the shape {tuple(buffer.shape)}, its parameter "
            f"{tuple(param.shape)}, which asks for {shape}"
        )
    if buffer.layout is not torch.strided or buffer.is_meta:
        raise TypeError(f"{where} must be a dense tensor with its data")
    if narrows and not buffer.is_contiguous():
        raise ValueError(f"{where} must be contiguous, got the strides {buffer.stride()}")
    if type(buffer) is Tensor and torch._debug_has_internal_overlap(buffer) == 1:
        raise ValueError(f"{where} must have memory for each element, got an expanded tensor")
    values = local_part(buffer.detach())
    positive = name != "momentum_buffer"
    if not values.isfinite().all() or (positive and (values < 0).any()):
        least = " at least 0 and" if positive else ""
        raise ValueError(f"{where} must be{least} finite everywhere")


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
