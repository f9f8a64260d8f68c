"""A gradient that would spoil the state leaves the elements it belongs to as they are."""

import copy
import math

import pytest
import torch

from dwmgrad import DWMGrad
from dwmgrad.kernels.foreach import can_be_squared

BAD = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "its square is not": {
        torch.float16: 6e4,
        torch.bfloat16: 1e20,
        torch.float32: 1e20,
        torch.float64: 1e200,
    },
}
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KERNELS = {
    "native": {},
    "operators": {"fused": True},
    "loop": {"fused": False, "foreach": False},
    "foreach": {"foreach": True},
    "bfloat16 state": {"state_dtype": torch.bfloat16},
    "8-bit state": {"state_dtype": "int8"},
}


@pytest.fixture(params=KERNELS)
def kernel(request) -> dict:
    if request.param == "operators":
        request.getfixturevalue("no_library")
    return KERNELS[request.param]


def bad_number(bad: str, dtype: torch.dtype) -> float:
    return BAD[bad][dtype] if isinstance(BAD[bad], dict) else BAD[bad]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", BAD)
def test_one_bad_number_is_found_among_many_tensors(bad: str, dtype: torch.dtype) -> None:
    grads = [torch.full((n,), 200.0, dtype=dtype) for n in (1, 1000, 7)]
    assert can_be_squared(grads)
    for index in range(3):
        spoiled = [grad.clone() for grad in grads]
        spoiled[index][-1] = bad_number(bad, dtype)
        assert not can_be_squared(spoiled)


@pytest.mark.parametrize("loss", [None, 0.5], ids=["held", "fed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", BAD)
def test_the_elements_of_bad_gradients_stay_and_the_others_move(
    bad: str, dtype: torch.dtype, loss: float | None, kernel: dict
) -> None:
    if dtype == torch.float16 and math.isfinite(bad_number(bad, dtype)):
        pytest.skip("the state is wider and holds the square")
    params = [torch.ones(6000, dtype=dtype, requires_grad=True), torch.ones(3, dtype=dtype)]
    params[1].requires_grad_()
    optimizer = DWMGrad(params, lr=0.1, missing_loss="hold", weight_decay=0.1, **kernel)
    spoiled = torch.zeros(6000, dtype=torch.bool)
    spoiled[[0, 1023, 1024, 5999]] = True

    def step(value: float) -> None:
        params[0].grad = torch.ones_like(params[0])
        params[0].grad[spoiled] = value
        params[1].grad = torch.ones_like(params[1])
        optimizer.step(loss=loss)

    step(1.0)
    before = copy.deepcopy((params, optimizer.state_dict()["state"]))
    with pytest.warns(UserWarning, match="not finite.*stay as they were"):
        step(bad_number(bad, dtype))
    after = optimizer.state_dict()["state"]
    assert torch.equal(params[0][spoiled], before[0][0][spoiled])
    assert (params[0][~spoiled] != before[0][0][~spoiled]).all() and params[0].isfinite().all()
    assert (params[1] != before[0][1]).all()
    if "momentum_scale" not in after[0]:  # a block of 8-bit state is written as a whole
        for name in ("momentum_buffer", "square_avg"):
            buffer = before[1][0][name]
            assert torch.equal(buffer[spoiled], after[0][name][spoiled])
            assert after[0][name].isfinite().all()
    assert optimizer.param_groups[0]["observations"] == (0 if loss is None else 2)


@pytest.mark.filterwarnings("ignore:the loss is not finite", "ignore:a gradient has elements")
def test_never_a_nan_in_the_state(kernel: dict) -> None:
    """500 steps with NaN, infinite and huge losses and gradients at random; zeros as well."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(n, generator=generator).requires_grad_() for n in (1, 40, 5000)]
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
    assert 20 < skipped < 200


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
