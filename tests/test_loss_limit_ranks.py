"""`loss_limit` on several ranks: shards add up, copies count once, every rank has one number."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch.distributed.algorithms import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from dwmgrad import DWMGrad
from dwmgrad.distributed import assert_ranks_agree
from dwmgrad.losses import BACKWARD, brought

fsdp = pytest.importorskip("torch.distributed.fsdp")
STEPS, ROWS = 12, 8
SETTINGS: dict[str, Any] = {"lr": 0.5, "preset": "finetune", "loss_limit": 0.5, "weight_decay": 0.1}


def model_of() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))


def train(model: torch.nn.Module, optimizer: DWMGrad, rank: int = 0, ranks: int = 1) -> list[float]:
    limits = []
    for step in range(STEPS):
        rows = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(step))
        targets = rows.sum(1, keepdim=True).sin()
        optimizer.zero_grad()
        own = slice(rank, None, ranks)
        loss = (model(rows[own]) - targets[own]).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        limits.append(optimizer.state_dict()["param_groups"][0]["step_limit"])
    return limits


def on_ranks(rank: int, kind: str, capturable: bool) -> tuple[list[float], list[torch.Tensor], int]:
    ranks = dist.get_world_size()
    model: torch.nn.Module = model_of()
    if kind == "ddp":
        model = DistributedDataParallel(model)
    else:
        shape = {"fsdp2": (ranks,), "hsdp": (2, ranks // 2)}[kind]
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
        for part in (model[0], model[2], model):
            fsdp.fully_shard(part, mesh=mesh)
    optimizer = DWMGrad(model.parameters(), capturable=capturable, **SETTINGS)
    reduce, calls = dist.all_reduce, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0].dtype == torch.float64)  # not FSDP's own
        return reduce(*args, **kwargs)

    dist.all_reduce = counted
    limits = train(model, optimizer, rank, ranks)
    dist.all_reduce = reduce
    assert_ranks_agree(optimizer)
    params = [p.detach().full_tensor() if kind != "ddp" else p.detach() for p in model.parameters()]
    return limits, params, sum(calls)


def with_one_infinity(rank: int, capturable: bool) -> list[list[float]]:
    model = torch.nn.Linear(8, 8, bias=False)
    fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = DWMGrad(model.parameters(), preset="auto", capturable=capturable)
    found = []
    for step in range(5):
        loss = (model(torch.randn(16, 8, generator=torch.Generator().manual_seed(step))) - 9) ** 2
        with brought([optimizer], loss.mean(), BACKWARD, alone=True):
            loss.mean().backward()
        if step in (0, 3) and rank == 0:
            model.weight.grad.to_local()[0, 0] = float("inf")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.observe_clipping(norm, 1.0)
        optimizer.step()
        model.zero_grad()
        group = optimizer.state_dict()["param_groups"][0]
        found.append([group[name] for name in ("clipped_to", "step_limit", "observations")])
    return found


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "capturable"])
def test_an_infinity_on_one_rank_parts_none(capturable: bool, tmp_path: Path) -> None:
    """After clipping with an infinite norm the other rank's shard is zero, and not dropped."""
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no torch.distributed.fsdp.fully_shard")
    one, other = run(partial(with_one_infinity, capturable=capturable), tmp_path)
    assert one == other
    assert [step[2] for step in one] == [1, 2, 3, 4, 5]
    assert one[0][:2] == [0.0, 0.0] and one[3][:2] == one[2][:2]
    assert 0 < one[-1][0] < 0.5


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "capturable"])
@pytest.mark.parametrize(("kind", "ranks"), [("ddp", 2), ("fsdp2", 2), ("hsdp", 4)])
def test_ranks_do_what_one_process_does(
    kind: str, ranks: int, capturable: bool, tmp_path: Path
) -> None:
    if not hasattr(fsdp, "fully_shard") and kind != "ddp":
        pytest.skip("this torch has no torch.distributed.fsdp.fully_shard")
    model = model_of()
    expected = train(model, DWMGrad(model.parameters(), **SETTINGS))
    assert min(expected) < 0.5
    found = run(partial(on_ranks, kind=kind, capturable=capturable), tmp_path, ranks)
    for limits, params, own_reductions in found:
        assert limits == found[0][0]  # to the last bit
        assert limits == pytest.approx(expected, rel=1e-5)
        for param, other in zip(params, model.parameters(), strict=True):
            torch.testing.assert_close(param, other.detach(), rtol=1e-5, atol=1e-6)
        assert own_reductions == 2 * STEPS  # the loss, and one more


def what_a_step_says(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The error of a step with gradients of ones, if it is refused."""
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    try:
        optimizer.step(loss=1.0)
    except RuntimeError as error:
        return [str(error)]
    return []


def with_parts_elsewhere(rank: int) -> list[str]:
    """Tensor parallelism, and a loss that is averaged over the other dimension of the mesh."""
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    model = parallelize_module(model_of(), mesh["tp"], {"0": ColwiseParallel()})
    said = []
    for capturable in (False, True):
        options = {**SETTINGS, "capturable": capturable}
        optimizer = DWMGrad(model.parameters(), loss_group=mesh["dp"], **options)
        before = [
            p.full_tensor().clone() if hasattr(p, "placements") else p.clone()
            for p in model.parameters()
        ]
        said += what_a_step_says(model, optimizer)
        assert not optimizer.state
        after = [p.full_tensor() if hasattr(p, "placements") else p for p in model.parameters()]
        assert all(map(torch.equal, before, after))
    return said


def test_parts_outside_of_the_loss_group_are_refused(tmp_path: Path) -> None:
    for said in run(with_parts_elsewhere, tmp_path):
        assert len(said) == 2
        assert all("a parameter has parts on ranks [0, 1]: leave loss_group out" in s for s in said)


def with_parameters_of_its_own(rank: int) -> list[str]:
    """As the stages of a pipeline, and the parts of torch's ZeroRedundancyOptimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, said, options = model_of(), [], {"lr": 0.5, "loss_limit": 0.5}
    for make in (
        lambda: DWMGrad(model[2 * rank].parameters(), **options),
        lambda: ZeroRedundancyOptimizer(model.parameters(), optimizer_class=DWMGrad, **options),
    ):
        optimizer = make()
        said += what_a_step_says(model, optimizer)
    return said


def test_ranks_with_parameters_of_their_own_are_refused(tmp_path: Path) -> None:
    for said in run(with_parameters_of_its_own, tmp_path):
        assert len(said) == 2
        assert all("what loss_limit predicts from is" in each for each in said)
        assert all("each rank needs all parameters, or a shard of each" in each for each in said)


def alone_then_together(rank: int) -> list[float]:
    """Two steps within `no_sync()`, each rank by itself, then one together."""
    model = DistributedDataParallel(model_of())
    optimizer = DWMGrad(model.parameters(), **SETTINGS)

    def step(seed: int) -> float:
        optimizer.zero_grad()
        rows = torch.randn(3 + rank, 6, generator=torch.Generator().manual_seed(seed + rank))
        loss = model(rows).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        return optimizer.param_groups[0]["step_limit"]

    with model.no_sync():
        found = [step(0), step(1)]
    return [*found, step(2)]


def test_a_rank_alone_has_a_limit_of_its_own(tmp_path: Path) -> None:
    one, other = run(alone_then_together, tmp_path)
    assert one[:2] != other[:2]


def uneven_inputs(rank: int, capturable: bool) -> tuple[list[float], list[torch.Tensor]]:
    """Rank 1 has two steps more than rank 0, which shadows them."""
    model = DistributedDataParallel(model_of())
    optimizer = DWMGrad(model.parameters(), capturable=capturable, **SETTINGS)
    with Join([model, optimizer]):
        for step in range(3 + 2 * rank):
            optimizer.zero_grad()
            rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * step + rank))
            loss = model(rows).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
    group = optimizer.state_dict()["param_groups"][0]
    return [group["step_limit"], group["window"]], [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "capturable"])
def test_uneven_inputs_end_with_one_limit(capturable: bool, tmp_path: Path) -> None:
    one, other = run(partial(uneven_inputs, capturable=capturable), tmp_path)
    assert one[0] == other[0] and 0 < one[0][0] < 1
    assert all(map(torch.equal, one[1], other[1]))
