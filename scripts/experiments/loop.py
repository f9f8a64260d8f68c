"""A plain training loop on the whole data at once, for work that needs no Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dwmgrad import DWMGrad
from experiments.contenders import get_contender
from experiments.recording import Recorder
from experiments.schedules import make_schedule


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
        contender: a name of `contenders.CONTENDERS`.
        settings: as `Workload.settings` gives them.
        steps: the budget.
        evaluate_every: steps between two scores; the end is always scored.
    """
    rule, recorder, seconds = get_contender(contender), Recorder(steps), 0.0
    optimizer = rule.build(params, settings, steps)
    scheduler = make_schedule(optimizer, *rule.schedule(settings, steps), steps)
    for step in range(1, steps + 1):
        started = time.perf_counter()
        _switch(optimizer, "train")
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        if isinstance(optimizer, DWMGrad):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        scheduler.step()
        seconds += time.perf_counter() - started
        if not recorder.step(loss.item(), optimizer):
            break
        if step % evaluate_every == 0 or step == steps:
            _switch(optimizer, "eval")
            with torch.no_grad():
                recorder.evaluated(*score_of())
    return recorder.result(seconds)


def _switch(optimizer: Optimizer, mode: str) -> None:
    """Schedule-free optimizers train at one point and are evaluated at another."""
    getattr(optimizer, mode, lambda: None)()
