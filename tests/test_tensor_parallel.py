"""Tensor parallelism on gloo processes: DTensor parameters beside plain ones, also under FSDP2."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp as fsdp
from ranks import run
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from dwmgrad import DWMGrad
from dwmgrad.distributed import assert_ranks_agree

STEPS = 60
ROUNDING = 1e-6


class Block(torch.nn.Module):
    """A normalisation, which every rank holds whole, before two layers that are divided."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.LayerNorm(6)
        self.wide = torch.nn.Linear(6, 8)
        self.narrow = torch.nn.Linear(8, outputs)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.wide(self.norm(rows)).tanh())


def divided(model: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
    plan = {"wide": ColwiseParallel(), "narrow": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def train(
    model: torch.nn.Module, place: int = 0, places: int = 1, **options: Any
) -> dict[str, Any]:
    """Trains on the rows that belong to one of the data-parallel places."""
    settings = {"lr": 1e-2, "weight_decay": 0.1, "max_window": 20, "missing_loss": "error"}
    optimizer = DWMGrad(model.parameters(), **{**settings, **options})
    windows, losses = [], []
    for step in range(STEPS):
        rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        rows = rows.chunk(places)[place]
        loss = (model(rows) - rows.sum(1, keepdim=True).sin()).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        optimizer.zero_grad()
        windows.append(optimizer.window)
        losses.append(optimizer.last_loss)
    assert_ranks_agree(optimizer)
    whole = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters())
    params = [p.detach().clone() for p in whole]
    return {"windows": windows, "losses": losses, "params": params}


def furthest(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of two runs, over their losses and parameters."""
    losses = zip(found["losses"], expected["losses"], strict=True)
    params = zip(found["params"], expected["params"], strict=True)
    return max(*(abs(a - b) for a, b in losses), *((a - b).abs().max().item() for a, b in params))


def tensor_parallel(rank: int) -> list[dict[str, Any]]:
    mesh = init_device_mesh("cpu", (2,))
    kernels: tuple[dict[str, bool], ...] = ({}, {"fused": True}, {"foreach": True})
    return [train(divided(Block(1), mesh), **options) for options in kernels]


def test_two_ranks_equal_one_process_with_every_kernel(tmp_path: Path) -> None:
    alone = train(Block(1))
    for rank in run(tensor_parallel, tmp_path):
        for found in rank:
            assert found["windows"] == alone["windows"]
            assert furthest(found, alone) < ROUNDING


def divided_loss(rank: int) -> list[float | None]:
    """Losses that are DTensors themselves: replicated, and a sum of which each rank has a part."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh = init_device_mesh("cpu", (2,))
    param = torch.ones(2, requires_grad=True)
    optimizer = DWMGrad([param])
    seen = []
    for placement, value in ((Replicate(), 3.0), (Partial(), 1.0 + rank)):
        param.grad = torch.ones(2)
        optimizer.step(loss=DTensor.from_local(torch.tensor(value), mesh, [placement]))
        seen.append(optimizer.last_loss)
    return seen


def test_a_loss_that_is_a_dtensor(tmp_path: Path) -> None:
    assert run(divided_loss, tmp_path) == [[3.0, 3.0]] * 2


def beside_fsdp2(rank: int, outputs: int) -> dict[str, dict[str, Any]]:
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    groups = {"default": None, "mesh": mesh["dp"], "process group": mesh["dp"].get_group()}
    found = {}
    for name, group in groups.items():
        model = divided(Block(outputs), mesh["tp"])
        for part in (model.wide, model.narrow, model):
            fully_shard(part, mesh=mesh["dp"])
        place = mesh["dp"].get_local_rank()
        found[name] = train(model, place, places=2, loss_group=group)
    return found


@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="this torch has no fully_shard")
@pytest.mark.parametrize("outputs", [2, 1], ids=["even shards", "empty shards"])
def test_two_by_two_ranks_equal_one_process_whatever_the_loss_group(
    outputs: int, tmp_path: Path
) -> None:
    alone = train(Block(outputs))
    for rank in run(partial(beside_fsdp2, outputs=outputs), tmp_path, ranks=4):
        for group, found in rank.items():
            assert found["windows"] == alone["windows"], group
            assert furthest(found, alone) < ROUNDING, group


def loaded_in_8_bits(rank: int) -> tuple[str, list[Any], list[Any]]:
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))

    def made(**options: Any) -> DWMGrad:
        whole = torch.ones(128, 64)  # too small, and the state would stay in float32
        param = torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
        param.grad = distribute_tensor(whole, mesh, [Shard(0)])
        return DWMGrad([param], **options)

    saved, loading = made(), made(state_dtype="int8")
    saved.step(loss=1.0)
    before = [loading.window, loading.param_groups[0]["steps"], len(loading.state)]
    with pytest.raises(ValueError) as error:
        loading.load_state_dict(saved.state_dict())
    after = [loading.window, loading.param_groups[0]["steps"], len(loading.state)]
    return str(error.value), before, after


def test_a_state_that_cannot_be_held_in_8_bits_changes_nothing(tmp_path: Path) -> None:
    for message, before, after in run(loaded_in_8_bits, tmp_path):
        assert message.startswith('state_dtype="int8" does not take parameters that are cut')
        assert before == after
