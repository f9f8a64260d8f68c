"""The ranges of DWMGrad's arguments, for the constructor, for groups and for checkpoints."""

from __future__ import annotations

import math
from numbers import Integral, Number, Real
from typing import Any

import torch
from torch import Tensor

from .rule import SIGNALS
from .state import STATE_DTYPES

MISSING_LOSS = ("warn", "hold", "error")


_NUMBERS = ("lr", "momentum", "eps", "weight_decay", "loss_smoothing")
_SWITCHES = (
    "bias_correction",
    "normalize_momentum",
    "maximize",
    "stochastic_rounding",
    "capturable",
)
_COUNTS = ("initial_window", "max_window", "second_moment_window")
MOST_STEPS = 2**53  # up to which a float64 holds every whole number


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with NumPy's numbers and torch's dtypes as plain values.

    Those alone survive every kind of checkpoint.
    """
    kinds: dict[str, type] = {**dict.fromkeys(_NUMBERS, float), **dict.fromkeys(_COUNTS, int)}
    settings = {
        name: kinds[name](value) if name in kinds and isinstance(value, Number) else value
        for name, value in settings.items()
    }
    if isinstance(settings.get("state_dtype"), torch.dtype):
        settings["state_dtype"] = str(settings["state_dtype"]).removeprefix("torch.")
    return settings


def check(settings: dict[str, Any]) -> None:
    """Raises for the first setting that is out of range; the message has its name and value.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a value out of range.
    """
    lr = settings["lr"]
    if isinstance(lr, Tensor):
        if lr.dim() != 0 or not lr.is_floating_point():
            raise ValueError(f"lr must be a number or a 0-dim real tensor, got {lr!r}")
        lr = float(lr)
    _check_number("lr", lr)
    _check_number("momentum", settings["momentum"], below=1)
    _check_number("eps", settings["eps"])
    if settings["eps"] < torch.finfo(torch.float32).tiny:
        raise ValueError(
            f"eps must be at least {torch.finfo(torch.float32).tiny:.2g}, got {settings['eps']!r}: "
            "without it a gradient of 0 gives 0/0"
        )
    _check_number("weight_decay", settings["weight_decay"])
    _check_count("max_window", settings["max_window"])
    _check_count("initial_window", settings["initial_window"])
    if settings["initial_window"] > settings["max_window"]:
        raise ValueError(
            f"initial_window must be at most max_window, got initial_window="
            f"{settings['initial_window']} and max_window={settings['max_window']}"
        )
    _check_number("loss_smoothing", settings["loss_smoothing"], below=1)
    if settings["second_moment_window"] is not None:
        _check_count("second_moment_window", settings["second_moment_window"])
    _check_choice("window_signal", settings["window_signal"], SIGNALS)
    _check_choice("missing_loss", settings["missing_loss"], MISSING_LOSS)
    for name in _SWITCHES:
        if not isinstance(settings[name], bool):
            raise TypeError(f"{name} must be True or False, got {settings[name]!r}")
    if plain(settings)["state_dtype"] not in (None, *STATE_DTYPES):
        raise ValueError(
            "state_dtype must be None, torch.float32, torch.bfloat16 or 'int8', got "
            f"{settings['state_dtype']!r}"
        )
    for name in ("foreach", "fused"):
        if settings[name] is not None and not isinstance(settings[name], bool):
            raise TypeError(f"{name} must be True, False or None, got {settings[name]!r}")
    if settings["foreach"] and settings["fused"]:
        raise ValueError("foreach=True and fused=True exclude each other: choose one, or neither")


def _check_number(name: str, value: Any, below: float = math.inf, least: float = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    try:
        within = least <= float(value) < below
    except OverflowError:  # a whole number beyond float64
        within = False
    if not within:
        raise ValueError(f"{name} must be in [{least}, {below}), got {value!r}")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number of steps, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    if int(value) > MOST_STEPS:
        raise ValueError(f"{name} must be at most {MOST_STEPS}, got {value!r}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
