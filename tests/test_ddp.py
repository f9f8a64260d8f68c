"""DDP on gloo processes: all ranks are one optimizer, that of one process on the joined batch."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from dwmgrad import DWMGrad

STEPS = 200
ROUNDING = 1e-6
"""Of losses and parameters after 200 steps; 1.2e-7 and 2.4e-7 were measured."""


def joined_batch(step: int) -> torch.Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step))


def loss_of(model: torch.nn.Module, rows: torch.Tensor, **options: bool) -> torch.Tensor:
    return mse_loss(model(rows, **options), rows.sum(1, keepdim=True).sin())


def made_with(model: torch.nn.Module) -> DWMGrad:
    return DWMGrad(model.parameters(), lr=3e-3, max_window=20, missing_loss="error")


def mlp() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def train(
    model: torch.nn.Module, micro_batches: int = 1, rank: int = 0, ranks: int = 1
) -> dict[str, list]:
    """200 steps on this rank's rows of each joined batch; what was seen at each, and the result."""
    optimizer = made_with(model)
    windows, losses, own = [], [], []
    for step in range(STEPS):
        parts = joined_batch(step).chunk(ranks)[rank].chunk(micro_batches)
        own.append(0.0)
        for index, part in enumerate(parts):
            last = index == micro_batches - 1
            with nullcontext() if last else model.no_sync():
                loss = loss_of(model, part) / micro_batches
                loss.backward()
            optimizer.observe_loss(loss)
            own[-1] += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        windows.append(optimizer.window)
        losses.append(optimizer.last_loss)
    params = [p.detach() for p in model.parameters()]
    return {"windows": windows, "losses": losses, "own": own, "params": params}


def ddp(rank: int) -> list[dict[str, list]]:
    """One run with a single backward per step, one with two micro-batches."""
    found = []
    for micro_batches in (1, 2):
        model = DistributedDataParallel(mlp())
        reduced: list[int] = []
        with pytest.MonkeyPatch.context() as patch:  # DDP's own collectives are not Python's
            patch.setattr(dist, "all_reduce", counting(dist.all_reduce, reduced))
            seen = train(model, micro_batches, rank, dist.get_world_size())
        found.append({**seen, "reduced": reduced})
    return found


def counting(all_reduce: Any, reduced: list[int]) -> Any:
    """`all_reduce`, which also notes how many bytes each call reduces."""

    def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        reduced.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **options)

    return counted


@pytest.fixture(scope="module")
def alone() -> dict[str, list]:
    return train(mlp())


@pytest.fixture(scope="module", params=[2, 4], ids="{} ranks".format)
def worlds(request, tmp_path_factory) -> list[list[dict[str, list]]]:
    """What each rank saw, for each way of making a step's gradients."""
    ranks = run(ddp, tmp_path_factory.mktemp("ddp"), request.param)
    return list(map(list, zip(*ranks, strict=True)))


@pytest.fixture
def world_of_one(monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def furthest(found: dict[str, list], expected: dict[str, list]) -> float:
    """The largest difference of two runs, over their losses and parameters."""
    losses = zip(found["losses"], expected["losses"], strict=True)
    params = zip(found["params"], expected["params"], strict=True)
    return max(*(abs(a - b) for a, b in losses), *((a - b).abs().max().item() for a, b in params))


def test_ranks_agree_bit_by_bit_at_every_step(worlds) -> None:
    for first, *others in worlds:
        assert len(set(first["windows"])) > 10
        for other in others:
            assert other["own"] != first["own"]
            assert other["windows"] == first["windows"] and other["losses"] == first["losses"]
            assert all(map(torch.equal, other["params"], first["params"]))


def test_a_step_costs_one_small_all_reduce_however_many_micro_batches(worlds) -> None:
    for world in worlds:
        assert [rank["reduced"] for rank in world] == [[48] * STEPS] * len(world)


def test_ranks_equal_one_process_on_the_joined_batch(worlds, alone) -> None:
    moves = zip(alone["losses"][1:], alone["losses"], strict=False)
    assert min(abs(b - a) for a, b in moves) > 1e-3  # no window hangs on a rounding
    for first, *_ in worlds:
        assert first["windows"] == alone["windows"]
        assert furthest(first, alone) < ROUNDING


@pytest.mark.usefixtures("world_of_one")
def test_a_world_of_one_reduces_nothing_and_is_the_run_without_one(alone) -> None:
    whole, accumulated = ddp(0)
    assert whole["reduced"] == accumulated["reduced"] == []
    assert whole["windows"] == alone["windows"] and furthest(whole, alone) == 0
    assert accumulated["windows"] == alone["windows"]
    assert furthest(accumulated, alone) < ROUNDING


class Branches(torch.nn.Module):
    """One layer is always used, one only if asked for, one never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.asked, self.never = (torch.nn.Linear(6, 1) for _ in range(3))

    def forward(self, rows: torch.Tensor, asked: bool) -> torch.Tensor:
        return self.always(rows) + self.asked(rows) if asked else self.always(rows)


def train_branches(wrap, ranks: list[int]) -> dict[str, Any]:
    """30 steps on the rows of these two ranks, of which only rank 1 uses the layer `asked`."""
    model = wrap(Branches())
    optimizer = made_with(model)
    windows = []
    for step in range(30):
        rows = joined_batch(step).chunk(2)
        losses = [loss_of(model, rows[rank], asked=rank == 1) for rank in ranks]
        loss = sum(losses) / len(losses)
        loss.backward()
        optimizer.step(loss=loss)
        optimizer.zero_grad()
        windows.append(optimizer.window)
    params = [p.detach() for p in model.parameters()]
    return {
        "windows": windows,
        "losses": [optimizer.last_loss],
        "params": params,
        "state": optimizer.state_dict(),
    }


def unused(rank: int) -> dict[str, Any]:
    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        return DistributedDataParallel(model, find_unused_parameters=True)

    return train_branches(wrap, ranks=[rank])


def test_parameters_that_some_or_all_ranks_leave_unused(tmp_path) -> None:
    first, second = run(unused, tmp_path)
    assert first["windows"] == second["windows"]
    assert all(map(torch.equal, first["params"], second["params"]))
    assert list(first["state"]["state"]) == list(second["state"]["state"]) == list(range(6))
    alone = train_branches(lambda model: model, ranks=[0, 1])
    assert first["windows"] == alone["windows"] and furthest(first, alone) < ROUNDING
    start = [p.detach() for p in Branches().parameters()]
    still = list(map(torch.equal, first["params"], start))
    assert still == [False, False, False, False, True, True]
