"""Broken batches, and the optimizers that are held to skip them."""

from __future__ import annotations

import pytest
import torch
from experiments.broken import GuardedAdamW, broken, skipped_by
from experiments.workloads import digits, make_workload

from dwmgrad import DWMGrad


def batches(share: float, seed: int = 0, first: int = 0) -> list[torch.Tensor]:
    right = torch.arange(64) % 3
    numbers = range(first, 200)
    return [broken({"labels": right.clone()}, n, share, 3, seed)["labels"] for n in numbers]


def test_the_share_of_the_batches_is_wrong_in_every_label() -> None:
    right = torch.arange(64) % 3
    wrong = [labels for labels in batches(0.1) if not torch.equal(labels, right)]
    assert 10 <= len(wrong) <= 30
    assert all(bool((labels != right).all()) and labels.max() < 3 for labels in wrong)
    assert all(torch.equal(labels, right) for labels in batches(0.0))


def test_a_run_that_goes_on_breaks_the_same_batches() -> None:
    assert all(map(torch.equal, batches(0.3)[50:], batches(0.3, first=50)))
    assert not all(map(torch.equal, batches(0.3), batches(0.3, seed=1)))


def test_every_contender_gets_the_same_broken_batches(digits_dir, tmp_path, monkeypatch) -> None:
    """Also one for whose evaluations batch statistics are measured in between."""
    pytest.importorskip("schedulefree")
    seen: list[torch.Tensor] = []
    forward = digits.SoundClassifier.forward

    def look(model, spectra, labels=None):
        if torch.is_grad_enabled():
            seen.append(labels)
        return forward(model, spectra, labels)

    monkeypatch.setattr(digits.SoundClassifier, "forward", look)
    options = {"steps": 12, "batch_size": 8, "width": 4, "broken": 0.5}
    workload = make_workload("digits", str(digits_dir), **options)
    for contender in ("adamw", "schedule-free-adamw"):
        workload.run(contender, {"lr": 1e-3}, 0, tmp_path)
    assert len(seen) == 24 and all(map(torch.equal, seen[:12], seen[12:]))


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
