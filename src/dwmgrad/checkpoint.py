"""What DWMGrad adds to a state dict, and the check before one is loaded."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from . import arguments
from .guard import Guard
from .kernels.fit import Form, forms_of, misfit
from .presets import PAPER
from .progress import COUNTS, LOSSES, MOST_PASSED, PROGRESS, SCHEMA, group_numbers
from .state import BUFFERS, SCALES, ZERO_SHARE, convert, local_part, share_of, stored, zero_share_of

_SINCE_2 = {"steps": 0, "state_dtype": None, "stochastic_rounding": False, "capturable": False}
_SINCE_5 = {
    "loss_limit": None,
    "loss_floor": 0.0,
    "step_limit": 1.0,
    "auto_lr": False,
    "loss_guard": None,
    "peak_lr": None,
    "effective_lr": 0.0,
    "clipped_to": 1.0,
    "passed_over": 0,
    **group_numbers(Guard(0.0)),
    "limit_growth": 0.0,
    "limit_slope": 0.0,
    "loss_left": 1.0,
    "quarter_loss": None,
    "slow_loss": None,
}
"""What schemas 5 to 10 added."""
_OWN = ("lr", "weight_decay", "initial_window", "foreach", "fused", "capturable")
"""Settings that may differ from the saved ones without a word: scheduled, past, or of the host."""
COMMON = (*arguments.SHARED, *PROGRESS)
"""What is equal in all parameter groups."""


def check_form(state_dict: Any) -> None:
    """Raises TypeError or ValueError unless it has the two parts of a state dict."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError("state_dict must be a dict with the keys 'state' and 'param_groups'")
    for name, kind in (("param_groups", list), ("state", dict)):
        if not isinstance(state_dict[name], kind):
            raise TypeError(
                f"state_dict[{name!r}] must be a {kind.__name__}, got "
                f"{type(state_dict[name]).__name__}"
            )


def checked(state_dict: Any, optimizer: Any) -> dict[str, Any]:
    """The state dict in the present schema, if the optimizer can continue from it.

    The optimizer's own `state_dtype`, where it has one, takes the place of the saved one. Else
    raises TypeError or ValueError, naming the key, what it holds and what was expected.
    """
    check_form(state_dict)
    saved, own_groups = state_dict["param_groups"], optimizer.param_groups
    if len(saved) != len(own_groups):
        raise ValueError(
            f"state_dict has {len(saved)} parameter groups, the optimizer has {len(own_groups)}"
        )
    adopted = list(map(_adopted, saved, own_groups))
    groups = _repaired([group for group, _ in adopted])
    ours = {*optimizer.defaults, "params"} - {"differentiable"}  # which torch adds
    params: dict[Any, Tensor] = {}
    group_of: dict[Any, int] = {}
    for index, (group, current) in enumerate(zip(groups, own_groups, strict=True)):
        where = f"state_dict['param_groups'][{index}]"
        _check_group(where, group, len(current["params"]), groups[0], ours)
        for key, param in zip(group["params"], current["params"], strict=True):
            if params.setdefault(key, param) is not param:
                raise ValueError(
                    f"state_dict['param_groups'] has one key, {key!r}, for two parameters"
                )
            group_of[key] = index
    state = dict(state_dict["state"])
    for key, own in state.items():
        if key in params:
            index, param = group_of[key], params[key]
            state[key] = _checked_own(key, own, param, adopted[index][1])
            if BUFFERS[0] in state[key]:
                stored(param, groups[index]["state_dtype"])  # `convert` is to raise nothing later
        elif isinstance(own, dict) and set(BUFFERS) & set(own):
            raise ValueError(f"state_dict['state'] has the key {key!r}, which no group names")
    _refuse_shared({key: state[key] for key in params if key in state})
    _tell_of_lost_state(groups, state, params)
    silent = (*_OWN, "max_window") if optimizer._follows_length else _OWN
    _tell_of_differences(groups, saved, own_groups, silent)
    return {**state_dict, "param_groups": groups, "state": state}


# ---- older schemas ----


def _upgraded(group: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """A group in the present schema, and the share of the zeros that an older one has in it."""
    written = group.get("schema")
    if group.get("auto_lr") and group.get("loss_limit") and not group.get("observations"):
        group = {**group, "step_limit": 0.0}  # an earlier version began with 1
    if type(written) is not int or written not in range(1, SCHEMA):  # True is in a range
        return group, None
    missing, share = {"mean_micro_batches": group.get("micro_batches", 0), **_SINCE_5}, None
    if written < 4:
        corrects = written == 3 and group.get("bias_correction")
        share = group.get(ZERO_SHARE, 0.0) if corrects else 0.0
        _check_number(ZERO_SHARE, share, 0, 1)
        missing["micro_batches"] = 0
    if written < 3:
        missing |= {**PAPER, "mean_loss": group.get("last_loss")}
    if written < 2:
        missing |= _SINCE_2
    group = {**missing, **group, "schema": SCHEMA}
    group.pop(ZERO_SHARE, None)  # now each parameter has its own
    return group, share


def _adopted(group: Any, current: dict[str, Any]) -> tuple[Any, float | None]:
    """As `_upgraded`, with what is the present optimizer's own."""
    if not isinstance(group, dict):
        return group, None  # what is wrong with it is said later
    group, share = _upgraded({**group, "capturable": current["capturable"]})
    if current["state_dtype"] is not None and "state_dtype" in group:
        group = {**group, "state_dtype": current["state_dtype"]}
    return group, share


def bring_up(group: dict[str, Any], states: dict[Tensor, dict[str, Any]]) -> None:
    """Brings an optimizer's own group, and its parameters' state, to the present schema."""
    new, share = _upgraded(dict(group))
    group.clear()
    group.update(new)
    if share is not None:
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


# ---- the groups ----


def _check_group(where: str, group: Any, size: int, first: dict[str, Any], ours: set[str]) -> None:
    """Raises unless a saved group of `size` parameters has the keys `ours`, with values that fit.

    Other keys belong to others: to learning rate schedulers, or to loops that name their groups.
    """
    if not isinstance(group, dict):
        raise TypeError(f"{where} must be a dict, got {type(group).__name__}")
    schema = group.get("schema", SCHEMA)
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise ValueError(
            f"{where}['schema'] is {schema!r}, this version of dwmgrad reads 1 to {SCHEMA}: "
            "update dwmgrad"
        )
    missing = ours - set(group)
    if missing:
        makers = {"window": "", "betas": " of Adam or AdamW,", "nesterov": " of SGD,"}
        maker = next((makers[key] for key in makers if key in group), " of another optimizer,")
        raise ValueError(
            f"{where} is a group{maker} not of this DWMGrad: missing keys {sorted(missing)}, "
            f"unknown keys {sorted(set(group) - ours, key=repr)}. Go on with the optimizer that "
            "saved it, or begin DWMGrad without its state"
        )
    keys = group["params"]
    if not isinstance(keys, list) or not all(isinstance(key, (int, str)) for key in keys):
        raise TypeError(f"{where}['params'] must be a list of numbers or names")
    if len(keys) != size:
        raise ValueError(f"{where} has {len(keys)} parameters, the optimizer's group has {size}")
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
    most = {"window": group["max_window"], "increases": group["observations"]}
    most["passed_over"] = MOST_PASSED - 1
    for name in COUNTS:
        least = 1 if name == "window" else 0
        _check_number(name, group[name], least, most.get(name, arguments.MOST_STEPS), whole=True)
    for name in ("micro_batches", "mean_micro_batches", "effective_lr", "guard_deviation"):
        _check_number(name, group[name], 0)
    for name in ("step_limit", "clipped_to", "loss_left"):
        _check_number(name, group[name], 0, 1)
    _check_number("guard_mean", group["guard_mean"])
    for name in (*LOSSES, "peak_lr"):
        if group[name] is not None:
            _check_number(name, group[name], kind="a number or None")


def _check_number(
    name: str,
    value: Any,
    least: float = -math.inf,
    most: float = math.inf,
    whole: bool = False,
    kind: str = "a number",
) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(f"{name} must be {'a whole number' if whole else kind}, got {value!r}")
    if value < least or value > most:
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise ValueError(f"{name} must be {bound}, got {value!r}")
    if not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be finite, got {value!r}")


def _tell_of_lost_state(
    groups: list[dict[str, Any]], state: dict[Any, Any], params: dict[Any, Tensor]
) -> None:
    has_state = any(BUFFERS[0] in state.get(key, {}) for key in params)
    trains = any(param.requires_grad for param in params.values())
    if trains and not has_state and groups[0]["steps"]:
        warnings.warn(
            f"the state dict has made {groups[0]['steps']} steps and has no state for any "
            "parameter: the window goes on, momentum and mean squares begin anew",
            stacklevel=6,
        )


def _tell_of_differences(
    groups: list[Any], saved: list[Any], own: list[dict[str, Any]], but: tuple[str, ...]
) -> None:
    """One warning that names each setting in which the optimizer and the state dict differ."""
    found: dict[str, str] = {}
    for group, old, current in zip(groups, saved, own, strict=True):
        for name in arguments.SETTINGS:
            theirs, ours = old.get(name, group[name]), current[name]
            cycled = name == "momentum" and "max_momentum" in group  # by OneCycleLR
            if theirs != ours and name not in found and name not in but and not cycled:
                wins = "the optimizer's" if group[name] == ours else "the state dict's"
                found[name] = f"{name} is {theirs!r} there and {ours!r} here ({wins} holds)"
    if found:
        warnings.warn(
            f"the state dict and the optimizer have other settings: {'; '.join(found.values())}. "
            "To use a setting of your own, write it into each of optimizer.param_groups after "
            "loading",
            stacklevel=5,
        )


# ---- the state ----


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
    forms = forms_of(param.shape, blockwise=not ours.isdisjoint(SCALES))
    if ours != set(forms):
        raise ValueError(f"{where} must have the keys {sorted(forms)}, got {sorted(own, key=repr)}")
    if share:
        own = {**own, ZERO_SHARE: share_of(share)}
    if ZERO_SHARE in own:
        number = own[ZERO_SHARE]
        if isinstance(number, Tensor) and number.numel() == 1 and not number.is_meta:
            number = number.item()
        _check_number(f"{where}[{ZERO_SHARE!r}]", number, 0, 1)
    for name, form in sorted(forms.items()):
        _check_buffer(f"{where}[{name!r}]", own[name], param, form, name != BUFFERS[0])
    return own


def _check_buffer(where: str, buffer: Any, param: Tensor, form: Form, positive: bool) -> None:
    if not isinstance(buffer, Tensor) or buffer.is_complex():
        raise TypeError(f"{where} must be a real tensor, got {type(buffer).__name__}")
    wrong = misfit(buffer, param, form)
    if wrong is None and buffer.is_meta:
        wrong = "is on meta: load it with its data"
    if wrong is not None:
        raise ValueError(f"{where} {wrong}")
    values = local_part(buffer.detach())
    if not values.isfinite().all() or (positive and (values < 0).any()):
        least = " at least 0 and" if positive else ""
        raise ValueError(f"{where} must be{least} finite everywhere")


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


def restore_precision(state_dict: dict[str, Any], optimizer: Optimizer) -> None:
    """Gives loaded buffers the dtypes that they were saved in, or that the optimizer asks for."""
    # torch has cast the loaded buffers to the parameters' dtypes
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
        state[ZERO_SHARE] = share_of(zero_share_of(loaded))
        optimizer.state[param] = convert(state, param, state_dtype)
