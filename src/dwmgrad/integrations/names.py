"""The names that `--optim` takes, and what each sets."""

from __future__ import annotations

from typing import Any

NAMES: dict[str, dict[str, Any]] = {
    "dwmgrad": {},
    "dwmgrad_finetune": {"preset": "finetune"},
    "dwmgrad_capped": {"preset": "capped"},
    "dwmgrad_auto": {"preset": "auto"},
    "dwmgrad_auto_bf16": {"preset": "auto", "state_dtype": "bfloat16"},
    "dwmgrad_auto_8bit": {"preset": "auto", "state_dtype": "int8"},
    "dwmgrad_bf16": {"state_dtype": "bfloat16"},
    "dwmgrad_8bit": {"state_dtype": "int8"},
}
"""Name: the arguments of DWMGrad that it stands for."""


def preset_of(optim: Any) -> dict[str, Any] | None:
    """What the name stands for; None if it is not one of ours.

    Args:
        optim: the Trainer's argument, a member of its enum (whose hash is not its text's) or text.
    """
    name = getattr(optim, "value", optim)
    return NAMES.get(name) if isinstance(name, str) else None
