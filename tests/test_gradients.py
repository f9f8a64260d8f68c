"""A gradient that would spoil the state skips the step, on every rank alike."""

import copy
import math
from pathlib import Path

import pytest
import torch
from ranks import run

from dwmgrad import DWMGrad
from dwmgrad.gradients import fault_of

BAD = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "its square is not": {
        torch.float16: 300.0,
        torch.bfloat16: 1e20,
        torch.float32: 1e20,
        torch.float64: 1e200,
    },
}
KERNELS = [{}, {"fused": False, "foreach": False}, {"foreach": True}]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_number_is_found_among_many_tensors(bad: str, dtype: torch.dtype) -> None:
    value = BAD[bad][dtype] if isinstance(BAD[bad], dict) else BAD[bad]
    grads = [torch.full((n,), 200.0, dtype=dtype) for n in (1, 0, 1000, 7)]
    grads.append(torch.ones(3, 5, dtype=torch.float32).T)
    assert fault_of(grads) == 0.0
    for index in (0, 2, 3):
        spoiled = [grad.clone() for grad in grads]
        spoiled[index][-1] = value
        assert math.isnan(fault_of(spoiled))
    assert fault_of([]) == 0.0


@pytest.mark.filterwarnings("ignore:the loss or a gradient")
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("loss", [None, 0.5], ids=["held", "fed"])
def test_a_bad_gradient_changes_nothing_and_its_loss_is_dropped(loss, kernel: dict) -> None:
    params = [torch.ones(5, requires_grad=True), torch.ones(2, requires_grad=True)]
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    optimizer = DWMGrad(groups, lr=0.1, missing_loss="hold", weight_decay=0.1, **kernel)

    def step(value: float) -> None:
        params[0].grad = torch.ones(5)
        params[1].grad = torch.tensor([1.0, value])
        optimizer.step(loss=loss)

    step(1.0)
    before = copy.deepcopy((params, optimizer.state_dict()))
    for value in (math.nan, math.inf, 1e30):
        step(value)
    assert all(map(torch.equal, before[0], params))
    after = optimizer.state_dict()
    assert after["param_groups"] == before[1]["param_groups"]
    for key, buffers in before[1]["state"].items():
        assert all(torch.equal(b, after["state"][key][name]) for name, b in buffers.items())
    step(1.0)
    assert not any(map(torch.equal, before[0], params))


def one_rank_is_bad(rank: int) -> list:
    """In steps 3 and 4 the second rank has a bad gradient; in step 4 the first has no loss."""
    param = torch.ones(3, requires_grad=True)
    optimizer = DWMGrad([param], missing_loss="hold")
    seen = []
    for step in range(8):
        param.grad = torch.ones(3)
        if rank == 1 and step in (3, 4):
            param.grad[1] = math.inf
        if rank == 1 or step != 4:
            optimizer.observe_loss(1.0 / (step + 1 + rank))
        optimizer.step()
        seen.append((optimizer.window, optimizer.last_loss, param.detach().clone()))
    return seen


@pytest.mark.filterwarnings("ignore:the loss or a gradient")
def test_a_bad_gradient_of_one_rank_stops_all(tmp_path: Path) -> None:
    first, second = run(one_rank_is_bad, tmp_path)
    for ours, theirs in zip(first, second, strict=True):
        assert ours[:2] == theirs[:2] and torch.equal(ours[2], theirs[2])
    for skipped in (3, 4):
        assert torch.equal(first[skipped][2], first[2][2]) and first[skipped][:2] == first[2][:2]
    assert not torch.equal(first[5][2], first[4][2])


@pytest.mark.filterwarnings("ignore:the loss or a gradient")
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_never_a_nan_in_the_state(kernel: dict) -> None:
    """500 steps with NaN, infinite and huge losses and gradients at random; zeros as well."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(n, generator=generator).requires_grad_() for n in (1, 40, 300)]
    optimizer = DWMGrad(params, lr=0.1, **kernel)
    odd = [math.nan, math.inf, -math.inf, 1e30, -1e25, 1e18, 0.0, 1e-45]
    skipped = 0
    for step in range(500):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
            if torch.rand((), generator=generator) < 0.2:
                where = int(torch.randint(param.numel(), (), generator=generator))
                param.grad[where] = odd[step % len(odd)]
        loss = odd[step % 7] if torch.rand((), generator=generator) < 0.2 else 1 / (step + 1)
        observations = optimizer.param_groups[0]["observations"]
        optimizer.step(loss=loss)
        skipped += optimizer.param_groups[0]["observations"] == observations
        for param in params:
            assert param.isfinite().all()
            assert all(buffer.isfinite().all() for buffer in optimizer.state[param].values())
        assert math.isfinite(optimizer.last_loss or 0.0)
    assert 100 < skipped < 400


@pytest.mark.filterwarnings("ignore:the loss or a gradient")
def test_a_fault_in_a_later_call_of_a_step_holds_its_tensors_back_and_no_window() -> None:
    """As DeepSpeed steps: once per group, each time with that group alone."""
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = DWMGrad([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    groups = optimizer.param_groups
    for step, bad in enumerate((1.0, math.nan, 1.0)):
        optimizer.observe_loss(1.0 / (step + 1))
        before = [p.detach().clone() for p in params]
        for index, group in enumerate(groups):
            params[index].grad = torch.tensor([1.0, bad if index == 1 else 1.0])
            optimizer.param_groups = [group]
            optimizer.step()
        optimizer.param_groups = groups
        assert [torch.equal(*pair) for pair in zip(before, params, strict=True)] == [
            False,
            math.isnan(bad),
        ]
        assert [group["observations"] for group in groups] == [step + 1] * 2
    assert len({group["window"] for group in groups}) == 1
    DWMGrad([{"params": params[:1]}, {"params": params[1:]}]).load_state_dict(
        optimizer.state_dict()
    )


def test_a_frozen_parameters_old_gradient_does_not_matter() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    for param in params:
        param.grad = torch.ones(2)
    params[1].grad[0] = math.nan
    params[1].requires_grad_(False)
    optimizer = DWMGrad(params, lr=0.1)
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[0]["observations"] == 1 and (params[0] != 1).all()


def test_memory_that_runs_out_at_the_first_step_leaves_nothing_behind(monkeypatch) -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(3)]
    optimizer = DWMGrad(params, lr=0.1)
    for param in params:
        param.grad = torch.ones(2)
    zeros_like, left = torch.zeros_like, [3]

    def with_little_memory(*args, **options) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return zeros_like(*args, **options)

    monkeypatch.setattr(torch, "zeros_like", with_little_memory)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step(loss=1.0)
    assert optimizer.window == 5 and optimizer.param_groups[0]["observations"] == 0
    assert all((param == 1).all() for param in params)
    monkeypatch.undo()
    optimizer.step(loss=1.0)
    assert optimizer.window == 4 and optimizer.param_groups[0]["observations"] == 1
