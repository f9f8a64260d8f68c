"""Rosenbrock's valley, with the settings of the paper's authors: start (1, 2), 1000 steps.

With lr 1e-3, max_window 15 and the signal `decrease` DWMGrad ends at (1.00528951, 1.01149244),
f = 1.0638e-4, as the authors' NumPy class does. One run takes 0.3 s on one core.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.recording import run_loop
from experiments.workload import Workload


def rosenbrock(x: Any, y: Any) -> Any:
    """(1 - x)² + 100 (y - x²)²; its minimum is 0 at (1, 1)."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@dataclass(frozen=True, kw_only=True)
class Rosenbrock(Workload):
    """The function's value where the run ends; the result also has the `path`, [x, y] by step."""

    name: str = "rosenbrock"
    metric: str = "f"
    higher_is_better: bool = False
    steps: int = 1000
    start: tuple[float, float] = (1.0, 2.0)

    def run(self, contender: str, settings: Mapping[str, Any], seed: int, folder: Path) -> dict:
        settings = self.settings(contender, settings)
        torch.manual_seed(seed)  # nothing is random here, unless an optimizer is
        point = torch.tensor(self.start, dtype=torch.float64, requires_grad=True)
        path = []

        def loss() -> Tensor:
            path.append(point.tolist())
            return rosenbrock(point[0], point[1])

        def score() -> tuple[float, dict[str, float]]:
            x, y = point.tolist()
            return rosenbrock(x, y), {"x": x, "y": y}

        result = run_loop([point], loss, score, contender, settings, self.steps, self.steps)
        path.append(point.tolist())
        return {**result, "path": [each for each in path if all(map(math.isfinite, each))]}
