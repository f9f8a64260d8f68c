"""The arguments of DWMGrad in one table.

The constructor, parameter groups, checkpoints and `--optim_args` read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral, Number, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .presets import PAPER, PRESETS
from .rule import LEAST_EPS, SIGNALS
from .state import STATE_DTYPES

MOST_STEPS = 2**53  # up to which a float64 holds every whole number
LR_ROUNDING = 1e-12  # below 0 by no more than this ends torch's LinearLR(end_factor=0)


class Kind(NamedTuple):
    """What values an argument takes."""

    check: Callable[[str, Any], None]  # of name and value; raises TypeError or ValueError
    parse: Callable[[str], Any]  # of a text, to the value; its ValueError says what it may be
    plain: Callable[[Any], Any] = lambda value: value  # instead of NumPy's numbers, torch's dtypes


class Argument(NamedTuple):
    """One argument."""

    kind: Kind | None  # None: it is checked elsewhere
    default: Any  # where neither the user nor a preset gives a value
    help: str  # one line
    option: str | None = "optim_args"  # in the Trainer: a key of these, or an option; None: neither
    shared: bool = False  # whether it is one for all parameter groups


def check_real(name: str, value: Any) -> None:
    """Raises unless it is a real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")


def _numeric(check: Callable[[str, Any], None], kind: Any, called: str) -> Kind:
    """The kind of argument whose plain values are of a type, `kind`, that errors name so."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(called) from None

    return Kind(check, parse, lambda value: kind(value) if isinstance(value, Number) else value)


def _number(below: float = math.inf) -> Kind:
    def check(name: str, value: Any) -> None:
        check_real(name, value)
        try:
            within = 0 <= float(value) < below
        except OverflowError:  # a whole number beyond float64
            within = False
        if not within:
            raise ValueError(f"{name} must be in [0, {below}), got {value!r}")

    return _numeric(check, float, "a number")


_NUMBER = _number()


def check_lr(name: str, lr: Any) -> None:
    """Raises unless it is a learning rate: a finite number from 0 on, but for rounding."""
    if isinstance(lr, Tensor):
        if lr.dim() != 0 or not lr.is_floating_point():
            raise ValueError(f"{name} must be a number or a 0-dim real tensor, got {lr!r}")
        lr = float(lr)
    check_real(name, lr)
    if not -LR_ROUNDING <= lr < 0:
        _NUMBER.check(name, lr)


def _check_eps(name: str, eps: Any) -> None:
    _NUMBER.check(name, eps)
    if eps < LEAST_EPS:
        raise ValueError(
            f"{name} must be at least {LEAST_EPS:.2g}, got {eps!r}: without it a gradient of 0 "
            "gives 0/0"
        )


def check_steps(name: str, value: Any) -> None:
    """Raises unless it is a whole number of steps from 1 on."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number of steps, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    if int(value) > MOST_STEPS:
        raise ValueError(f"{name} must be at most {MOST_STEPS}, got {value!r}")


def _check_limit(name: str, value: Any) -> None:
    _NUMBER.check(name, value)
    if value == 0:
        raise ValueError(f"{name} must be above 0, got {value!r}: to go without, leave it out")


def _check_floor(name: str, value: Any) -> None:
    check_real(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")


def _choice(*choices: str) -> Kind:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return Kind(check, parse)


def _check_switch(name: str, value: Any, values: str = "True or False") -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be {values}, got {value!r}")


def _parse_switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _check_state_dtype(name: str, value: Any) -> None:
    if _plain_dtype(value) not in (None, *STATE_DTYPES):
        raise ValueError(
            f"{name} must be None, torch.float32, torch.bfloat16 or 'int8', got {value!r}"
        )


def _plain_dtype(value: Any) -> Any:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _or_none(kind: Kind) -> Kind:
    """None where nothing is given: then a preset's value holds, so no text stands for it."""
    return kind._replace(
        check=lambda name, value: None if value is None else kind.check(name, value)
    )


_STEPS = _numeric(check_steps, int, "a whole number")
_MAYBE_STEPS = _or_none(_STEPS)
_LIMIT = _or_none(_NUMBER._replace(check=_check_limit))
_FLOOR = _NUMBER._replace(check=_check_floor)
_SWITCH = Kind(_check_switch, _parse_switch)
_PREFERENCE = _or_none(
    Kind(
        partial(_check_switch, values="True, False or None"),
        lambda text: None if text.lower() == "none" else _parse_switch(text),
    )
)


def _of_preset(name: str, kind: Kind, help: str) -> dict[str, Argument]:
    return {name: Argument(kind, PAPER[name], help, shared=True)}


ARGUMENTS: dict[str, Argument] = {
    "lr": Argument(_NUMBER._replace(check=check_lr), 1e-3, "learning rate", "--learning_rate"),
    "momentum": Argument(_number(below=1), PAPER["momentum"], "base momentum"),
    "eps": Argument(
        _NUMBER._replace(check=_check_eps),
        1e-8,
        "added to the root of the mean square",
        "--adam_epsilon",
    ),
    "weight_decay": Argument(_NUMBER, 0.0, "decoupled weight decay, as in AdamW", "--weight_decay"),
    "preset": Argument(
        _choice(*PRESETS), None, "settings for the arguments that are not given", shared=True
    ),
    **_of_preset("initial_window", _STEPS, "window before the first step"),
    **_of_preset("max_window", _STEPS, "upper bound of the window"),
    **_of_preset("window_signal", _choice(*SIGNALS), "what makes the window grow"),
    **_of_preset("loss_smoothing", _number(below=1), "EMA decay of the loss that is compared"),
    **_of_preset("bias_correction", _SWITCH, "correct the mean square for its start at 0"),
    **_of_preset("normalize_momentum", _SWITCH, "scale the step to AdamW's learning rates"),
    **_of_preset("second_moment_window", _MAYBE_STEPS, "steps that the mean square remembers"),
    **_of_preset("auto_lr", _SWITCH, "take only the schedule's shape from lr"),
    **_of_preset("loss_limit", _LIMIT, "share of the loss that a step may be predicted to take"),
    **_of_preset("limit_growth", _number(), "what that share grows by as the loss falls"),
    **_of_preset("limit_slope", _number(), "what that share grows by while the loss falls"),
    **_of_preset("loss_floor", _FLOOR, "lower bound of the loss, for loss_limit"),
    **_of_preset("loss_guard", _LIMIT, "deviations above which a loss takes no step"),
    "maximize": Argument(_SWITCH, False, "ascend the gradient"),
    "foreach": Argument(_PREFERENCE, None, "prefer, or exclude, the multi-tensor kernel"),
    "fused": Argument(_PREFERENCE, None, "prefer, or exclude, the fused kernel"),
    "missing_loss": Argument(
        _choice("warn", "hold", "error"), "warn", "what a step without a loss does", shared=True
    ),
    "state_dtype": Argument(
        Kind(_check_state_dtype, _choice(*STATE_DTYPES).parse, _plain_dtype),
        None,
        "precision of the state",
    ),
    "stochastic_rounding": Argument(_SWITCH, False, "round bfloat16 parameters stochastically"),
    "loss_group": Argument(None, None, "ranks over which the loss is averaged", None, shared=True),
    "capturable": Argument(_SWITCH, False, "keep window and loss on the device", shared=True),
}
"""In the order of the constructor."""

SETTINGS = [name for name in ARGUMENTS if name not in ("preset", "loss_group")]
"""What a parameter group holds."""
SHARED = [name for name in SETTINGS if ARGUMENTS[name].shared]
_KINDS = {name: each.kind for name, each in ARGUMENTS.items() if each.kind and name in SETTINGS}


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with NumPy's numbers and torch's dtypes as plain values.

    Those alone survive every kind of checkpoint.
    """
    found = {name: _plain_number(value) for name, value in settings.items()}
    found |= {name: _KINDS[name].plain(found[name]) for name in _KINDS.keys() & found.keys()}
    return found


def _plain_number(value: Any) -> Any:
    """Of a group's values that are not DWMGrad's: schedulers leave `initial_lr` and others."""
    if isinstance(value, Real) and not isinstance(value, (bool, int)):
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def check(settings: dict[str, Any]) -> None:
    """Raises TypeError or ValueError for the first setting that is not right, by name and value."""
    for name in ("max_window", *SETTINGS):  # an initial window may be the largest
        _KINDS[name].check(name, settings[name])
    if settings["foreach"] and settings["fused"]:
        raise ValueError("foreach=True and fused=True exclude each other: choose one, or neither")


def check_new(settings: dict[str, Any]) -> None:
    """As `check`, for an optimizer that is made; later a user may have written into the groups."""
    check(settings)
    if settings["initial_window"] > settings["max_window"]:
        raise ValueError(
            f"initial_window must be at most max_window, got initial_window="
            f"{settings['initial_window']} and max_window={settings['max_window']}: set that, too"
        )
    for name in ("auto_lr", "limit_growth", "limit_slope"):
        if settings[name] and settings["loss_limit"] is None:
            raise ValueError(
                f"{name}={settings[name]!r} needs loss_limit, which is None: set it, too"
            )
