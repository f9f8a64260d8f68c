"""FSDP2 on two gloo processes: DTensor parameters, uneven and empty shards, exact resume."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh

from dwmgrad import DWMGrad

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("this torch has no torch.distributed.fsdp.fully_shard", allow_module_level=True)


def build(sharded: bool, **options) -> tuple[torch.nn.Module, DWMGrad]:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(6, 5), torch.nn.Linear(5, 1)  # 5 rows and 1 row for 2 ranks
    model: torch.nn.Module = torch.nn.Sequential(first, torch.nn.Tanh(), second)
    if sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for part in (first, second, model):
            fsdp.fully_shard(part, mesh=mesh)
    else:
        model = torch.nn.parallel.DistributedDataParallel(model)
    settings = {"lr": 1e-2, "weight_decay": 0.1, "missing_loss": "error", **options}
    return model, DWMGrad(model.parameters(), **settings)


def train(model: torch.nn.Module, optimizer: DWMGrad, begin: int, end: int) -> list[torch.Tensor]:
    for step in range(begin, end):
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        loss = (model(torch.randn(4, 6, generator=generator)) - 1).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        optimizer.zero_grad()
    whole = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters())
    return [p.detach().clone() for p in whole]


def beside_ddp(rank: int) -> list:
    model, optimizer = build(sharded=False)
    expected = train(model, optimizer, 0, 40)
    found = []
    for options in ({}, {"fused": True}, {"foreach": True}):
        model, sharded = build(sharded=True, **options)
        params = train(model, sharded, 0, 40)
        far = max((a - b).abs().max().item() for a, b in zip(expected, params, strict=True))
        found.append((sharded.window == optimizer.window, far))
    return found


def test_fsdp2_equals_ddp_with_every_kernel(tmp_path: Path) -> None:
    for rank in run(beside_ddp, tmp_path):
        assert all(same_window and far < 1e-6 for same_window, far in rank)


def resumed(rank: int) -> list:
    whole = train(*build(sharded=True), 0, 40)
    found = []
    for options in (
        StateDictOptions(),
        StateDictOptions(full_state_dict=True),
        StateDictOptions(flatten_optimizer_state_dict=True),
    ):
        model, optimizer = build(sharded=True)
        train(model, optimizer, 0, 17)
        saved = get_optimizer_state_dict(model, optimizer, options=options)
        other, loaded = build(sharded=True)
        other.load_state_dict(model.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # creating state must not warn
            set_optimizer_state_dict(other, loaded, saved, options=options)
        params = train(other, loaded, 17, 40)
        found.append(all(map(torch.equal, whole, params)))
    return found


def test_fsdp2_goes_on_bit_by_bit_from_sharded_full_and_flat_state(tmp_path: Path) -> None:
    assert run(resumed, tmp_path) == [[True] * 3] * 2
