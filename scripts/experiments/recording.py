"""What is kept of a run while it trains; and a plain loop, for work that needs no Trainer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from provenance import machine, versions
from torch import Tensor

from dwmgrad import DWMGrad
from dwmgrad.wrappers import innermost
from experiments.broken import skipped_by
from experiments.contenders import get_contender

POINTS = 100
"""The loss curve has about this many points."""
REACH = 25
"""The trend of the loss at a step compares its means over this many steps before and after."""
_PEERS = ("schedulefree", "momo-opt", "prodigyopt")
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", *_PEERS)
"""What numbers may depend on."""


class Recorder:
    """Collects losses, windows and scores, and ends as the result that `Workload.run` describes.

    Its attributes are plain values, for checkpoints; `steps` is the budget.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.losses: list[float] = []
        self.positive: list[int] = []  # signals of DWMGrad, counted after each step
        self.signal = ""
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, float | None] = {}
        self.score: float | None = None
        self.skipped: list[int] = []  # steps, from 1 on
        self.diverged = False

    def step(self, loss: float, optimizer: Any) -> bool:
        """After each optimizer step, with that step's loss; False: it diverged, stop."""
        if not math.isfinite(loss):
            self.diverged = True
            return False
        self.losses.append(loss)
        optimizer = innermost(optimizer)
        if skipped_by(optimizer) > len(self.skipped):
            self.skipped.append(len(self.losses))
        step, every = len(self.losses), max(1, self.steps // POINTS)
        point: dict[str, Any] = {"step": step, "loss": fmean(self.losses[-every:])}
        if isinstance(optimizer, DWMGrad):
            self.positive.append(optimizer.param_groups[0]["increases"])
            self.signal = optimizer.param_groups[0]["window_signal"]
            point["window"] = optimizer.window
            point["effective_momentum"] = optimizer.effective_momentum
        if step % every == 0:
            self.history.append(point)
        return True

    def evaluated(self, score: float, metrics: Mapping[str, float]) -> None:
        """After each evaluation; the last one counts."""
        if not math.isfinite(score):
            self.diverged = True
            return
        self.score = float(score)
        self.history.append({"step": len(self.losses), "score": self.score})
        self.metrics = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }

    def result(self, seconds: float) -> dict[str, Any]:
        """The run's result; `seconds` of training."""
        tail = max(1, math.ceil(0.05 * self.steps))
        failed = self.diverged or not self.losses
        result: dict[str, Any] = {
            "score": None if failed else self.score,
            "diverged": self.diverged,
            "train_loss": None if failed else fmean(self.losses[-tail:]),
            "steps": len(self.losses),
            "seconds": seconds,
            "metrics": {} if failed else self.metrics,
            "history": self.history,
        }
        if self.skipped:
            result["skipped"] = self.skipped
        if self.positive:
            result["increases"] = self.positive[-1] / len(self.positive)
            result["signal_noise"] = signal_noise(self.losses, self.positive, self.signal)
        return {**result, "machine": machine(), "versions": versions(*LIBRARIES)}


def signal_noise(losses: Sequence[float], positive: Sequence[int], signal: str) -> float | None:
    """The share of steps whose signal had not the sign of the trend; chance gives one half.

    A signal compares two losses; the trend there is the sign of the difference between the mean of
    the `REACH` losses before the two and that of the `REACH` after them, so the first and the last
    steps have none.

    Args:
        losses: of each step.
        positive: after each step, on how many the signal was positive so far.
        signal: DWMGrad's `window_signal`. None is returned for `loss`, which follows no change.
    """
    steps = range(REACH + 1, len(losses) - REACH)
    if signal not in ("decrease", "increase") or not steps:
        return None
    wrong = 0
    for step in steps:
        before = math.fsum(losses[step - 1 - REACH : step - 1])
        after = math.fsum(losses[step + 1 : step + 1 + REACH])
        trend = before - after if signal == "decrease" else after - before
        wrong += (positive[step] > positive[step - 1]) != (trend > 0)
    return wrong / len(steps)


def run_loop(
    params: Iterable[Tensor],
    loss_of: Callable[[], Tensor],
    score_of: Callable[[], tuple[float, dict[str, float]]],
    contender: str,
    settings: Mapping[str, Any],
    steps: int,
    evaluate_every: int,
) -> dict[str, Any]:
    """Take `steps` steps down `loss_of()` and return the result that `Workload.run` describes.

    Args:
        params: what is trained.
        loss_of: the loss as a scalar with a graph; called once a step.
        score_of: the score, and all metrics.
        contender, settings, steps: as in `Workload`; settings are complete.
        evaluate_every: steps between two scores; the end is always scored.
    """
    rule, recorder, seconds = get_contender(contender), Recorder(steps), 0.0
    optimizer: Any = rule.build(params, settings, steps)
    scheduler = rule.scheduler(optimizer, settings, steps)
    takes_loss = rule.needs_loss or isinstance(optimizer, DWMGrad)
    for step in range(1, steps + 1):
        started = time.perf_counter()
        if rule.schedule_free:  # it trains at one point and is evaluated at another
            optimizer.train()
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step(**({"loss": loss} if takes_loss else {}))
        scheduler.step()
        seconds += time.perf_counter() - started
        if not recorder.step(loss.item(), optimizer):
            break
        if step % evaluate_every == 0 or step == steps:
            if rule.schedule_free:
                optimizer.eval()
            with torch.no_grad():
                recorder.evaluated(*score_of())
    return recorder.result(seconds)
