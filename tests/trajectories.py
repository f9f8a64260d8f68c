"""What the rule makes of fixed losses and gradients, kept for its present version.

After a change that is meant to give other numbers, raise `dwmgrad.rule.RULE_VERSION`, or
`dwmgrad.limit.LIMIT_VERSION` where those of a `loss_limit` alone are others, and run

    python tests/trajectories.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dwmgrad import DWMGrad
from dwmgrad.limit import LIMIT_VERSION
from dwmgrad.rule import RULE_VERSION

STORED = Path(__file__).with_suffix(".json")
STEPS = 40
# a preset's values are no part of the rule
AUTO = {
    "preset": "auto",
    "momentum": 0.9,
    "loss_limit": 0.2,
    "limit_growth": 0.4,
    "limit_slope": 2.0,
}
CASES: dict[str, dict[str, Any]] = {
    "decrease": {"window_signal": "decrease"},
    "increase": {"window_signal": "increase", "max_window": 15},
    "loss": {"window_signal": "loss", "max_window": 100, "weight_decay": 0.1},
    "smoothed": {"loss_smoothing": 0.9, "max_window": 100, "momentum": 0.8},
    "finetune": {"preset": "finetune", "weight_decay": 0.1},
    "limited": {"preset": "finetune", "loss_limit": 0.001},
    "fixed": {**AUTO, "loss_limit": 0.3, "limit_growth": 0.0, "loss_smoothing": 0.0},
    "auto": {**AUTO, "loss_limit": 0.1, "limit_growth": 0.6, "loss_floor": -1.0},
    "falling": {**AUTO, "max_window": 12, "limit_slope": 4.0},
    "clipped": {**AUTO, "max_window": 12},
    "corrected": {"bias_correction": True, "second_moment_window": 7, "maximize": True},
}


def key_of(name: str) -> str:
    """Under which versions the numbers of a case are kept."""
    limited = {"loss_limit", "limit_slope"} & CASES[name].keys()
    return f"{RULE_VERSION}, limit {LIMIT_VERSION}" if limited else str(RULE_VERSION)


def trajectory(name: str) -> list[list[float]]:
    """The window and three numbers after each step; a fourth begins in the middle."""
    arguments, clips = CASES[name], name == "clipped"
    early = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).requires_grad_()
    late = torch.tensor([1.0], dtype=torch.float64)
    optimizer = DWMGrad([early, late], lr=0.01, **arguments)
    found = []
    for step in range(STEPS):
        late.requires_grad_(step >= STEPS // 2)
        for param in (early, late) if late.requires_grad else (early,):
            place = torch.arange(param.numel(), dtype=torch.float64)
            param.grad = torch.sin(place + step * 0.7) * (1 + step % 3)
        if clips:
            optimizer.observe_clipping(2.0 + step % 5, 1.0)
        optimizer.step(loss=2.0 + (step * 7 % 5 - 0.25 * step) / 4)
        found.append([optimizer.window, *early.tolist(), *late.tolist()])
    return found


def main() -> None:
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    stored |= {key_of(name): {} for name in CASES}
    for name in CASES:
        stored[key_of(name)][name] = trajectory(name)
    STORED.write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    main()
