"""A plain training loop on the whole data at once, for work that needs no Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dwmgrad import DWMGrad
from experiments.contenders import get_contender
from experiments.recording import Recorder


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
    for step in range(1, steps + 1):
        started = time.perf_counter()
        if rule.schedule_free:  # it trains at one point and is evaluated at another
            optimizer.train()
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        if rule.needs_loss:
            optimizer.loss = loss.detach()
        optimizer.step(**({"loss": loss} if isinstance(optimizer, DWMGrad) else {}))
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
