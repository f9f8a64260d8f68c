"""Every kernel equals the plain loop, for every dtype, shape and stride, while the window moves."""

import copy
import math

import pytest
import torch
from kernel_calls import update
from torch import Tensor

from dwmgrad.kernels import Coefficients, Tensors, foreach, fused, reference

SHAPES = [(33, 70), (128,), (), (2, 3, 5, 7), (1,), (1000,)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def state(dtype: torch.dtype, device: str = "cpu") -> Tensors:
    params = [torch.randn(shape).to(device, dtype) for shape in SHAPES]
    zeros = [torch.zeros_like(param) for param in params]
    return Tensors(params, [], zeros, copy.deepcopy(zeros), list(range(len(params))))


def one(param: Tensor, grad: Tensor, v: Tensor, s: Tensor) -> Tensors:
    return Tensors([param], [grad], [v], [s], [0])


def coefficients(
    step: int, weight_decay: float, sign: float = 1.0, lr: float = 1e-3
) -> Coefficients:
    window = 1 + round(4.5 * (1 + math.sin(step)))  # 1 to 10
    return Coefficients(
        step_size=sign * lr,
        decay=(window - 1) / window,
        momentum=0.9 * window / 10,
        eps=1e-8,
        shrink=lr * weight_decay,
    )


def outliers(a: Tensor, b: Tensor, rtol: float, atol: float) -> float:
    return (~torch.isclose(a.double(), b.double(), rtol=rtol, atol=atol)).double().mean().item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["minimize", "maximize"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["native", "fused", "foreach"])
def test_a_kernel_equals_the_loop_over_200_moving_windows(
    kernel: str, dtype: torch.dtype, weight_decay: float, sign: float, device: str, request
) -> None:
    if kernel == "fused":
        request.getfixturevalue("no_library")
    options = {"use_foreach": True} if kernel == "foreach" else {"use_fused": True}
    expected = state(dtype, device)
    actual = copy.deepcopy(expected)
    for step in range(200):
        grads = [torch.randn(shape).to(device, dtype) for shape in SHAPES]
        before = copy.deepcopy(grads)
        c = coefficients(step, weight_decay, sign)
        reference.update(expected._replace(grads=grads), c)
        update(actual._replace(grads=grads), c._replace(**options))
        assert all(map(torch.equal, grads, before)), "a kernel changed a gradient"
    rtol, atol = {8: (1e-12, 1e-13), 4: (1e-5, 1e-6), 2: (1e-2, 1e-3)}[dtype.itemsize]
    for column in (0, 2, 3):
        a, b = (torch.cat([t.flatten() for t in each[column]]) for each in (actual, expected))
        assert outliers(a, b, rtol, atol) <= (0.01 if dtype.itemsize == 2 else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_fused_kernel_is_used_on_the_cpu_wherever_it_is_right(dtype: torch.dtype) -> None:
    param = torch.zeros(3, dtype=dtype)
    decays = coefficients(0, weight_decay=0.1)
    assert fused.accepts(param, decays._replace(shrink=0.0))
    assert fused.accepts(param, decays) == (dtype.itemsize >= 4)
    assert not fused.accepts(param, decays._replace(step_size=0.0))
    assert not fused.accepts(param, decays._replace(step_size=1e-310))


def strided(layout: str) -> tuple[Tensor, Tensor]:
    param = torch.randn(4, 6, 5, 3)
    grad = torch.randn(4, 6, 5, 3)
    if layout == "both channels_last":
        return tuple(t.to(memory_format=torch.channels_last) for t in (param, grad))
    if layout == "gradient channels_last":
        return param, grad.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return param.transpose(0, 1), torch.randn(6, 4, 5, 3)
    return param, torch.randn(4, 6, 5, 1).expand(4, 6, 5, 3)


@pytest.mark.parametrize(
    "layout", ["both channels_last", "gradient channels_last", "transposed", "expanded gradient"]
)
@pytest.mark.parametrize("preference", [None, "use_fused", "use_foreach"])
def test_strides_do_not_mix_elements_up(layout: str, preference: str | None) -> None:
    param, grad = strided(layout)
    plain = param.contiguous().clone()
    buffers = [torch.zeros_like(param) for _ in range(2)]
    plain_buffers = [torch.zeros_like(plain) for _ in range(2)]
    options = {preference: True} if preference else {}
    for step in range(3):
        c = coefficients(step, weight_decay=0.1)
        update(one(param, grad, *buffers), c._replace(**options))
        reference.update(one(plain, grad.contiguous(), *plain_buffers), c)
    torch.testing.assert_close(param, plain)


@pytest.mark.parametrize("layout", ["both channels_last", "gradient channels_last", "transposed"])
@pytest.mark.parametrize("state", [torch.bfloat16, torch.float32], ids=str)
def test_in_every_layout_kernels_round_stochastically_alike(
    layout: str, state: torch.dtype
) -> None:
    param, grad = (part.bfloat16() for part in strided(layout))
    if layout == "transposed":  # both, so that the fast kernel takes it
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    expected = one(param, grad, *(torch.zeros_like(param, dtype=state) for _ in range(2)))
    actual = copy.deepcopy(expected)
    for step in range(3):
        c = coefficients(step, 0.1)._replace(
            noise=step, stochastic_state=True, stochastic_params=True
        )
        reference.update(expected, c)
        update(actual, c)
    for column in (0, 2, 3):  # a float32 that differs in its last place may round to a neighbour
        off = ~torch.isclose(actual[column][0], expected[column][0], rtol=1e-5, atol=1e-6)
        assert off.float().mean() <= 0.01


def test_one_step_may_mix_dtypes_and_strides() -> None:
    params = [
        torch.randn(5),
        torch.randn(5).bfloat16(),
        torch.randn(4, 6).t(),
        torch.randn(3).double(),
    ]
    grads = [torch.randn_like(p) for p in params[:2]] + [torch.randn(6, 4), torch.randn(3).double()]
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    tensors = Tensors(params, grads, first, second, list(range(4)))
    expected = copy.deepcopy(tensors)
    c = coefficients(3, weight_decay=0.1)
    update(tensors, c)
    reference.update(expected, c)
    for a, b in zip(params, expected.params, strict=True):
        torch.testing.assert_close(a, b)


def test_the_learning_rate_zero_moves_along_the_momentum_alone() -> None:
    param, grad, v, s = torch.ones(2), torch.ones(2), torch.full((2,), 0.5), torch.ones(2)
    c = coefficients(0, weight_decay=0.1, lr=0.0)
    update(one(param, grad, v, s), c._replace(use_fused=True))
    torch.testing.assert_close(v, torch.full((2,), 0.5 * c.momentum))
    torch.testing.assert_close(param, 1 - v)


def test_a_kernel_that_disagrees_with_the_loop_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fused.is_right.cache_clear()
    real = torch._fused_adamw_

    def off_by_a_little(*args: object, **options: object) -> None:
        real(*args, **{**options, "eps": 0.01})

    monkeypatch.setattr(torch, "_fused_adamw_", off_by_a_little)
    assert not fused.is_right(torch.device("cpu"), torch.float32)
    fused.is_right.cache_clear()


def test_foreach_is_never_the_choice_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreach, "update", lambda *_: pytest.fail("foreach ran"))
    tensors = one(*(torch.ones(3) for _ in range(4)))
    update(tensors, coefficients(0, 0.0)._replace(use_fused=False))
    assert (tensors.params[0] < 1).all()
