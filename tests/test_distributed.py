"""Two real processes with gloo: one window, whatever the ranks' losses are."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run

from dwmgrad import DWMGrad
from dwmgrad.ranks import Share, agree


def ddp_run(rank: int) -> tuple:
    """60 steps of DDP with different data, counting the all-reduces of one number."""
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(6, 2))
    optimizer = DWMGrad(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(rank)
    reduced = []
    all_reduce = dist.all_reduce

    def counting(tensor, *args, **options):
        reduced.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **options)

    dist.all_reduce = counting
    windows, losses, own = [], [], []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(torch.randn(4, 6, generator=generator)) - 1).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        windows.append(optimizer.window)
        losses.append(optimizer.last_loss)
        own.append(loss.item())
    return windows, losses, own, reduced, [p.detach() for p in model.parameters()]


def test_ddp_ranks_agree_bit_by_bit_with_one_small_all_reduce_a_step(tmp_path: Path) -> None:
    first, second = run(ddp_run, tmp_path)
    assert first[0] == second[0] and first[1] == second[1]
    assert first[2] != second[2]
    for mean, a, b in zip(first[1], first[2], second[2], strict=True):
        assert mean == pytest.approx((a + b) / 2, rel=1e-6)
    assert first[3] == second[3] == [48] * 60
    assert all(map(torch.equal, first[4], second[4]))


def odd_losses(rank: int) -> list:
    """What the ranks make of losses that are missing, not finite or Python numbers."""
    cpu = torch.device("cpu")
    cases = [(1.0, torch.tensor(2.0)), (None, 1.0), (float("nan"), 1.0), (float("inf"), None)]
    cases += [(None, None), (torch.tensor(float("-inf")), 1.0)]
    means = [agree(Share(case[rank], 1), cpu).loss for case in cases]
    param = torch.ones(2, requires_grad=True)
    optimizer = DWMGrad([param], missing_loss="hold")
    for step in range(6):
        param.grad = torch.ones(2)
        if step != 2 or rank == 0:  # in step 2 the second rank has no loss
            bad = step == 4 and rank == 1
            optimizer.observe_loss(float("nan") if bad else 1.0 / (step + 1 + rank))
        optimizer.step()
    return [means, optimizer.window, optimizer.last_loss, param.detach()]


def warm_up(rank: int) -> list:
    """lr = 0 at the first step, where the second rank has no loss; then both have one."""
    param = torch.ones(2, requires_grad=True)
    optimizer = DWMGrad([param], lr=0.0, missing_loss="hold")
    for lr in (0.0, 0.1):
        param.grad = torch.ones(2)
        optimizer.param_groups[0]["lr"] = lr
        if rank == 0 or lr > 0:
            optimizer.observe_loss(1.0 + rank)
        optimizer.step()
    return [optimizer.window, optimizer.last_loss]


def test_a_rank_without_a_loss_keeps_nobody_waiting_at_lr_0(tmp_path: Path) -> None:
    assert run(warm_up, tmp_path) == [[4, 1.5], [4, 1.5]]


def idle_warm_up(rank: int) -> list:
    """lr = 0 at the first step, where the second rank has neither a loss nor a gradient."""
    param = torch.ones(2, requires_grad=True)
    optimizer = DWMGrad([param], lr=0.0, missing_loss="hold")
    seen = []
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 * step
        if rank == 0 or step:
            param.grad = torch.ones(2)
            optimizer.observe_loss(1.0 + step + rank)
        optimizer.step()
        seen.append(optimizer.last_loss)
    return seen


def test_a_rank_without_anything_takes_part_at_lr_0(tmp_path: Path) -> None:
    assert run(idle_warm_up, tmp_path) == [[None, 2.5, 3.5]] * 2


@pytest.mark.filterwarnings("ignore:the loss is not finite")
def test_every_rank_draws_the_same_conclusion_from_odd_losses(tmp_path: Path) -> None:
    first, second = run(odd_losses, tmp_path)
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert first[0] == [1.5, -math.inf, nan, nan, -math.inf, nan]
    assert second[0] == [1.5, -math.inf, nan, nan, -math.inf, nan]
    assert first[1:3] == second[1:3]
    assert torch.equal(first[3], second[3])
