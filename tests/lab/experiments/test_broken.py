"""Broken batches, and the optimizers that are held to skip them."""

from __future__ import annotations

import pytest
import torch
from experiments.broken import Breaker, GuardedAdamW, skipped_by

from dwmgrad import DWMGrad


def batches(share: float, seed: int = 0, first: int = 0) -> list[torch.Tensor]:
    breaker = Breaker(lambda labels: {"labels": labels.clone()}, share, classes=3, seed=seed)
    breaker.made = first
    return [breaker(torch.arange(64) % 3)["labels"] for _ in range(200 - first)]


def test_the_share_of_the_batches_is_wrong_in_every_label() -> None:
    right = torch.arange(64) % 3
    wrong = [labels for labels in batches(0.1) if not torch.equal(labels, right)]
    assert 10 <= len(wrong) <= 30
    assert all(bool((labels != right).all()) and labels.max() < 3 for labels in wrong)
    assert all(torch.equal(labels, right) for labels in batches(0.0))


def test_a_run_that_goes_on_breaks_the_same_batches() -> None:
    assert all(map(torch.equal, batches(0.3)[50:], batches(0.3, first=50)))
    assert not all(map(torch.equal, batches(0.3), batches(0.3, seed=1)))


@pytest.mark.parametrize("kind", ["adamw", "dwmgrad"])
def test_what_was_skipped_is_counted(kind: str) -> None:
    param = torch.nn.Parameter(torch.zeros(50))
    if kind == "adamw":
        optimizer = GuardedAdamW([param], lr=1e-3, max_grad_norm=1.0)
    else:
        optimizer = DWMGrad([param], preset="finetune", loss_guard=3.0)
    for step in range(60):
        before = param.detach().clone()
        size = 50.0 if step == 40 else 1.0 + 0.1 * (step % 5)
        param.grad = size * torch.ones(50)
        optimizer.step(**({} if kind == "adamw" else {"loss": size}))
        assert torch.equal(before, param.detach()) == (step == 40)
    assert skipped_by(optimizer) == 1
    assert skipped_by(torch.optim.SGD([param], lr=1e-3)) == 0
