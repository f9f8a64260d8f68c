"""The paper's settings, and the presets that take their place."""

from __future__ import annotations

import difflib
from numbers import Integral
from typing import Any

PAPER: dict[str, Any] = {
    "momentum": 0.9,
    "initial_window": 5,
    "max_window": 10,
    "window_signal": "decrease",
    "loss_smoothing": 0.0,
    "bias_correction": False,
    "normalize_momentum": False,
    "second_moment_window": None,
    "auto_lr": False,
    "loss_limit": None,
    "limit_growth": 0.0,
    "limit_slope": 0.0,
    "loss_floor": 0.0,
    "loss_guard": None,
}
"""The arguments that a preset may set, with the paper's values, which hold without one."""

_BY_THE_LOSS: dict[str, Any] = {
    "max_window": 100,
    "window_signal": "loss",
    "bias_correction": True,
    "second_moment_window": 1000,
    "loss_limit": 0.1,
    "limit_growth": 1.4,
    "loss_smoothing": 0.9,
}
PRESETS: dict[str, dict[str, Any]] = {
    "finetune": {
        "max_window": 100,
        "loss_smoothing": 0.9,
        "bias_correction": True,
        "normalize_momentum": True,
        "second_moment_window": 500,
    },
    "capped": {**_BY_THE_LOSS, "normalize_momentum": True},
    "auto": {**_BY_THE_LOSS, "momentum": 0.6, "limit_slope": 1.0, "auto_lr": True},
}
"""Name: what it sets in place of the paper's values. docs/evidence.md compares them with AdamW."""
AUTO_SHARE = 0.2
"""Of a run's steps: over so many the windows of `capped` and `auto` grow, where they are known."""


def resolve(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the preset, and with its values, else the paper's, where one is None.

    An initial window that is not given is `max_window`, where that is smaller. The settings have
    `preset`, a name of `PRESETS` or None, and all arguments of `PAPER`; others may be among them.

    Raises:
        ValueError: there is no such preset.
    """
    values = dict(settings)
    preset = values.pop("preset")
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        near = difflib.get_close_matches(str(preset), PRESETS, n=1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"preset must be None or one of {', '.join(PRESETS)}; got {preset!r}{hint}"
        )
    chosen = {**PAPER, **PRESETS[preset]} if preset else PAPER
    values |= {name: value for name, value in chosen.items() if values[name] is None}
    if settings["initial_window"] is None and isinstance(values["max_window"], Integral):
        values["initial_window"] = min(values["initial_window"], values["max_window"])
    return values
