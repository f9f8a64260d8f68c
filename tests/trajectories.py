"""What the rule makes of fixed losses and gradients, kept for each version of it.

After a change that is meant to give other numbers, raise `dwmgrad.rule.RULE_VERSION` and run

    python tests/trajectories.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dwmgrad import DWMGrad
from dwmgrad.rule import RULE_VERSION

STORED = Path(__file__).with_suffix(".json")
STEPS = 40
CASES: dict[str, dict[str, Any]] = {
    "decrease": {"window_signal": "decrease"},
    "increase": {"window_signal": "increase", "max_window": 15},
    "loss": {"window_signal": "loss", "max_window": 100, "weight_decay": 0.1},
    "smoothed": {"loss_smoothing": 0.9, "max_window": 100, "momentum": 0.8},
    "finetune": {"preset": "finetune", "weight_decay": 0.1},
    "limited": {"preset": "finetune", "loss_limit": 0.001},
    "fixed": {"preset": "auto", "loss_limit": 0.3, "limit_growth": 0.0, "loss_smoothing": 0.0},
    "auto": {"preset": "auto", "loss_limit": 0.1, "limit_growth": 0.6, "loss_floor": -1.0},
    "falling": {"preset": "auto", "max_window": 12, "limit_slope": 4.0},
    "corrected": {"bias_correction": True, "second_moment_window": 7, "maximize": True},
}


def trajectory(arguments: dict[str, Any]) -> list[list[float]]:
    """The window and three numbers after each step; a fourth begins in the middle."""
    early = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64).requires_grad_()
    late = torch.tensor([1.0], dtype=torch.float64)
    optimizer = DWMGrad([early, late], lr=0.01, **arguments)
    found = []
    for step in range(STEPS):
        late.requires_grad_(step >= STEPS // 2)
        for param in (early, late) if late.requires_grad else (early,):
            place = torch.arange(param.numel(), dtype=torch.float64)
            param.grad = torch.sin(place + step * 0.7) * (1 + step % 3)
        optimizer.step(loss=2.0 + (step * 7 % 5 - 0.25 * step) / 4)
        found.append([optimizer.window, *early.tolist(), *late.tolist()])
    return found


def main() -> None:
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    stored[str(RULE_VERSION)] = {name: trajectory(case) for name, case in CASES.items()}
    STORED.write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    main()
