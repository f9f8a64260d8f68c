"""Settings under one name, chosen by measurement."""

from __future__ import annotations

import difflib
from numbers import Integral
from typing import Any

PAPER: dict[str, Any] = {
    "initial_window": 5,
    "max_window": 10,
    "loss_smoothing": 0.0,
    "bias_correction": False,
    "normalize_momentum": False,
    "second_moment_window": None,
}
"""The arguments that a preset may set, with the paper's values, which hold without one."""

PRESETS: dict[str, dict[str, Any]] = {
    "finetune": {
        "max_window": 100,
        "loss_smoothing": 0.9,
        "bias_correction": True,
        "normalize_momentum": True,
        "second_moment_window": 500,
    },
}
"""Name: what it sets in place of the paper's values. docs/evidence.md compares it with AdamW."""


def resolve(preset: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The values of all arguments of `PAPER`: the given ones, then the preset's, then the paper's.

    An initial window that is not given is `max_window`, where that is smaller.

    Args:
        preset: a name of `PRESETS`, or None.
        given: the arguments; None stands for one that was not given.

    Raises:
        ValueError: there is no such preset.
    """
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        near = difflib.get_close_matches(str(preset), PRESETS, n=1)
        hint = f" did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"preset must be None or one of {', '.join(PRESETS)}; got {preset!r}{hint}"
        )
    chosen = {**PAPER, **PRESETS[preset]} if preset else PAPER
    values = {name: value if value is not None else chosen[name] for name, value in given.items()}
    if given["initial_window"] is None and isinstance(values["max_window"], Integral):
        values["initial_window"] = min(values["initial_window"], values["max_window"])
    return values
