"""DWMGrad whose window takes the path of another run: the control for what the loss has to say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from environment import ROOT
from glue.errors import choose, one_line

from dwmgrad import DWMGrad


class Replayed(DWMGrad):
    """DWMGrad that is deaf to its own loss.

    Args:
        windows_of: whose windows: a JSON file of `run_experiment.py --output`, from the checkout's
            root on, the label in it, and the seed.
    """

    def __init__(self, params: Any, *, windows_of: tuple[str, str, int], **options: Any) -> None:
        # with this signal a positive loss lets the window grow by one
        super().__init__(params, window_signal="loss", **options)
        self.path, self.made = _path(*windows_of), 0
        self.register_step_pre_hook(_replay)


def _replay(optimizer: Replayed, args: Any, kwargs: Any) -> None:
    """Sets the window so that the step makes it the other run's."""
    step = min(optimizer.made, len(optimizer.path) - 1)
    for group in optimizer.param_groups:
        group["window"] = optimizer.path[step] - 1
    optimizer.made += 1


def _path(file: str, label: str, seed: int) -> list[int]:
    """A run's windows, one a step; between those that its record has, in a straight line."""
    with one_line(OSError, ValueError, LookupError, of=f"windows_of {file}: "):
        results = json.loads((ROOT / file).read_text(encoding="utf-8"))["results"]
    choose(f"windows_of {file}: label", label, results)
    runs = {str(each["seed"]): each for each in results[label]["runs"] if each.get("windows")}
    choose(f"windows_of {file}: {label}: seed", str(seed), runs)
    run = runs[str(seed)]
    steps, windows = zip(*run["windows"], strict=True)
    return np.interp(range(1, run["steps"] + 1), steps, windows).round().astype(int).tolist()
