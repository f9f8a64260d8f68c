"""`loss_guard`: a batch whose loss stands out takes no step."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch.nn.parallel import DistributedDataParallel

from dwmgrad import DWMGrad
from dwmgrad.distributed import assert_ranks_agree
from dwmgrad.guard import GUARD_WARMUP, MOST_REFUSED, Guard

SIZE = 300


def clean(step: int) -> float:
    """A loss that falls, with noise of a tenth of it."""
    noise = torch.rand((), generator=torch.Generator().manual_seed(step))
    return float(2.0 * 0.99**step * (1 + 0.1 * noise))


def train(
    optimizer: DWMGrad, steps: range, broken: dict[int, float] | None = None, scheduler: Any = None
) -> list[int]:
    """The steps in which no parameter moved; `broken`: step, and what its loss is multiplied by."""
    (param,) = optimizer.param_groups[0]["params"]
    still = []
    for step in steps:
        before = param.detach().clone()
        param.grad = torch.randn(SIZE, generator=torch.Generator().manual_seed(step))
        optimizer.step(loss=clean(step) * (broken or {}).get(step, 1.0))
        if scheduler is not None:
            scheduler.step()
        if torch.equal(before, param.detach()):
            still.append(step)
    return still


def optimizer_of(**settings: Any) -> DWMGrad:
    param = torch.nn.Parameter(torch.linspace(-1, 1, SIZE))
    return DWMGrad([param], **{"lr": 1e-2, "preset": "finetune", "loss_guard": 3.0, **settings})


HOMES = pytest.mark.parametrize("capturable", [False, True], ids=["host", "capturable"])
says = pytest.mark.filterwarnings("ignore:a loss stands out")


@says
@HOMES
@pytest.mark.parametrize("limit", [None, 0.5])
def test_a_broken_batch_moves_the_guard_alone(capturable: bool, limit: float | None) -> None:
    optimizer = optimizer_of(capturable=capturable, loss_limit=limit)
    train(optimizer, range(40))
    before = copy.deepcopy(optimizer.state_dict())
    assert train(optimizer, range(40, 41), {40: 5.0}) == [40]
    after = optimizer.state_dict()
    for name, buffer in before["state"][0].items():
        assert torch.equal(torch.as_tensor(buffer), torch.as_tensor(after["state"][0][name])), name
    changed = {
        name
        for name, value in after["param_groups"][0].items()
        if before["param_groups"][0][name] != value
    }
    assert changed == {
        "guard_mean", "guard_deviation", "guard_seen", "guard_in_row", "guarded_steps",
    }  # fmt: skip
    assert after["param_groups"][0]["guarded_steps"] == 1
    assert train(optimizer, range(41, 50)) == []


@HOMES
def test_a_step_of_two_losses_is_not_compared_with_those_of_one(capturable: bool) -> None:
    """As where every tenth step has a second loss, which is large."""
    optimizer = optimizer_of(capturable=capturable)
    (param,) = optimizer.param_groups[0]["params"]
    for step in range(60):
        param.grad = torch.randn(SIZE, generator=torch.Generator().manual_seed(step))
        optimizer.observe_loss(clean(step))
        if step % 10 == 9:
            optimizer.observe_loss(10.0)
        optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["guarded_steps"] == 0
    assert optimizer.param_groups[0]["guard_seen"] == 60 - 6


@HOMES
def test_clean_losses_train_as_without_it(capturable: bool) -> None:
    with_it, without = (
        optimizer_of(capturable=capturable, loss_guard=guard) for guard in (3.0, None)
    )
    assert train(with_it, range(120)) == train(without, range(120)) == []
    for one, other in zip(
        with_it.param_groups[0]["params"], without.param_groups[0]["params"], strict=True
    ):
        assert torch.equal(one, other)


@says
def test_host_and_device_refuse_the_same() -> None:
    broken = {20: 3.0, 21: 9.0, 45: 1.6, 60: 100.0, 61: 100.0, 62: 100.0, 90: 4.0}
    host, device = optimizer_of(), optimizer_of(capturable=True)
    still = train(host, range(120), broken)
    assert still == train(device, range(120), broken)
    assert {20, 21, 60, 61, 62, 90} <= set(still)
    ours, theirs = (each.state_dict()["param_groups"][0] for each in (host, device))
    for name in ("guard_seen", "guard_in_row", "guarded_steps", "window", "steps"):
        assert ours[name] == theirs[name], name
    assert ours["guard_mean"] == pytest.approx(theirs["guard_mean"], rel=1e-6)


@says
def test_it_learns_first_and_never_refuses_more_than_a_few_in_a_row() -> None:
    optimizer = optimizer_of()
    still = train(optimizer, range(60), {step: 50.0 for step in range(25, 60)} | {3: 50.0})
    assert still == list(range(25, 25 + MOST_REFUSED)), "a rise that lasts is believed"
    assert 3 < GUARD_WARMUP


@says
def test_a_resumed_run_refuses_the_same() -> None:
    broken = {30: 5.0, 31: 5.0, 44: 5.0}
    whole, first = optimizer_of(), optimizer_of()
    train(whole, range(60), broken)
    train(first, range(31), broken)
    second = optimizer_of()
    with torch.no_grad():
        second.param_groups[0]["params"][0].copy_(first.param_groups[0]["params"][0])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, range(31, 60), broken)
    assert second.param_groups[0]["guarded_steps"] == whole.param_groups[0]["guarded_steps"] == 3
    assert torch.equal(*(each.param_groups[0]["params"][0] for each in (whole, second)))


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-30, 1e30])
def test_the_scale_and_the_sign_of_the_losses_do_not_matter(scale: float) -> None:
    guard = Guard(3.0)
    refused = []
    for step in range(100):
        loss = scale * clean(step) + (5 * abs(scale) if step == 50 else 0.0)
        if guard.refuses(loss):
            refused.append(step)
        guard.observe(loss)
    assert refused == [50]


def test_a_loss_that_was_constant_begins_anew() -> None:
    """Without a spread any other loss stands out; not for longer than a few steps."""
    guard, refused = Guard(3.0), []
    for step in range(100):
        loss = 0.0 if step < 50 else 1.0 + 0.1 * (step % 3)
        if guard.refuses(loss):
            refused.append(step)
        guard.observe(loss)
    assert refused == [50, 51, 52]


def test_it_says_so_once() -> None:
    optimizer = optimizer_of()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(optimizer, range(60), {30: 5.0, 40: 5.0})
    found = [str(each.message) for each in caught if "stands out" in str(each.message)]
    assert len(found) == 1
    assert "guarded_steps" in found[0]


def test_where_warnings_are_errors_the_step_is_refused_as_ever() -> None:
    optimizer, other = optimizer_of(), optimizer_of()
    train(other, range(20))
    train(optimizer, range(20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="stands out"):
            train(optimizer, [20], {20: 5.0})
    assert train(optimizer, [21]) == [] and optimizer.param_groups[0]["guarded_steps"] == 1
    with pytest.warns(UserWarning, match="stands out"):
        train(other, [20, 21], {20: 5.0})
    assert optimizer.state_dict()["param_groups"] == other.state_dict()["param_groups"]


@says
def test_the_schedule_goes_on_and_a_missing_loss_is_no_loss() -> None:
    optimizer = optimizer_of(missing_loss="hold")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 60)
    train(optimizer, range(31), {30: 5.0}, scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1 - 31 / 60))
    seen = optimizer.param_groups[0]["guard_seen"]
    optimizer.step()
    assert optimizer.param_groups[0]["guard_seen"] == seen
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step(loss=float("nan"))
    assert optimizer.param_groups[0]["guard_seen"] == seen


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "3"])
def test_a_wrong_threshold_is_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="loss_guard must be"):
        optimizer_of(loss_guard=value)


def on_ranks(rank: int, capturable: bool) -> tuple[int, torch.Tensor]:
    """One rank alone has a broken batch: the mean stands out, and no rank makes the step."""
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(6, 1))
    optimizer = DWMGrad(
        model.parameters(), lr=1e-2, preset="finetune", loss_guard=3.0, capturable=capturable
    )
    for step in range(50):
        rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(2 * step + rank))
        optimizer.zero_grad()
        loss = model(rows).square().mean() * 0 + clean(step)
        loss = loss + (model(rows) - rows.sum(1, keepdim=True)).square().mean() * 1e-3
        if step == 40 and rank == 1:
            loss = loss * 20
        loss.backward()
        optimizer.step(loss=loss)
    assert_ranks_agree(optimizer)
    return optimizer.state_dict()["param_groups"][0]["guarded_steps"], model.module.weight.detach()


@HOMES
def test_all_ranks_refuse_together(capturable: bool, tmp_path: Path) -> None:
    (first, ours), (second, theirs) = run(partial(on_ranks, capturable=capturable), tmp_path)
    assert first == second == 1
    assert torch.equal(ours, theirs)
    assert not dist.is_initialized()


@pytest.mark.parametrize("capturable", [False, True])
def test_it_begins_anew_with_the_comparison(capturable: bool) -> None:
    """Losses that nobody divides: those of 7 micro-batches do not stand out from those of 4."""
    param = torch.zeros(3, requires_grad=True)
    optimizer = DWMGrad([param], loss_guard=3.0, capturable=capturable)
    counts = [*[4] * 20, *(7, 8) * 10, *[2] * 3, *[9] * 3]
    for step, count in enumerate(counts):
        param.grad = torch.ones(3)
        for _ in range(count):
            optimizer.observe_loss(1.0 + 0.01 * (step % 3))
        optimizer.step()
    group = optimizer.state_dict()["param_groups"][0]
    assert (group["guarded_steps"], group["steps"]) == (0, len(counts))
    assert group["guard_seen"] == 2, "of the last kind"
