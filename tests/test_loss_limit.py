"""The step that the loss allows: `loss_limit`, held to the rule written out in NumPy."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from dwmgrad import DWMGrad
from dwmgrad.kernels import Coefficients, Tensors, low_bit, native, reference

SIZES = (3, 300, 5000)
FORMS = pytest.mark.parametrize("form", [{}, {"capturable": True}], ids=["host", "capturable"])


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(size, generator=generator) * (1 + step % 3) for size in SIZES]


def params_of() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, size)) for size in SIZES]


def train(optimizer: DWMGrad, steps: range, scheduler=None) -> list[float]:
    """The limits of the steps."""
    found = []
    for step in steps:
        for param, grad in zip(optimizer.param_groups[0]["params"], gradients(step), strict=True):
            param.grad = grad
        optimizer.step(loss=loss_of(step))
        if scheduler is not None:
            scheduler.step()
        found.append(optimizer.state_dict()["param_groups"][0]["step_limit"])
    return found


def loss_of(step: int) -> float:
    return 3.0 - 0.05 * step + 0.1 * (step % 3)


def oracle(lr: float, steps: int, limit: float, floor: float, decay: float) -> tuple:
    """Parameters and limits, from the sentences of the docs alone; no preset, δ = 100."""
    theta = [np.linspace(-1, 1, size) for size in SIZES]
    v, s = ([np.zeros(size) for size in SIZES] for _ in range(2))
    window, last, limits = 5, None, []
    for step in range(steps):
        loss = loss_of(step)
        window = window + 1 if last is not None and loss < last else max(window - 1, 1)
        last = loss
        g = [each.double().numpy() for each in gradients(step)]
        s = [si * (window - 1) / window + gi**2 / window for si, gi in zip(s, g, strict=True)]
        mu = 0.9 * window / 100
        q = sum(
            (lr / (1 - mu) * gi**2 / (np.sqrt(si) + 1e-8)).sum()
            for gi, si in zip(g, s, strict=True)
        )
        k = min(1.0, limit * window / 100 * (loss - floor) / q)
        limits.append(k)
        for i in range(len(SIZES)):
            v[i] = mu * v[i] + k * lr * g[i] / (np.sqrt(s[i]) + 1e-8)
            theta[i] = theta[i] * (1 - k * lr * decay) - v[i]
    return theta, limits


@pytest.mark.parametrize(
    "form",
    [{}, {"fused": False}, {"foreach": True}, {"capturable": True}],
    ids=["native", "loop", "foreach", "capturable"],
)
@pytest.mark.parametrize(("lr", "floor"), [(1e-5, 0.0), (1e-3, 0.0), (1.0, 0.5)])
def test_it_is_the_rule(form: dict, lr: float, floor: float) -> None:
    params = params_of()
    optimizer = DWMGrad(
        params, lr=lr, max_window=100, loss_limit=0.5, loss_floor=floor, weight_decay=0.1, **form
    )
    limits = train(optimizer, range(30))
    expected, expected_limits = oracle(lr, 30, 0.5, floor, 0.1)
    assert limits == pytest.approx(expected_limits, rel=1e-5)
    assert min(limits) < 1 or lr < 1e-4
    for param, theta in zip(params, expected, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), theta, rtol=1e-4, atol=1e-6)


@FORMS
@pytest.mark.parametrize(("floor", "smoothing"), [(0.0, 0.0), (1.0, 0.9), (1.0, 0.0)])
def test_the_share_grows_as_the_loss_falls(form: dict, floor: float, smoothing: float) -> None:
    settings = dict(lr=1.0, max_window=100, loss_floor=floor, loss_smoothing=smoothing, **form)
    plain = DWMGrad(params_of(), loss_limit=0.1, **settings)
    growing = DWMGrad(params_of(), loss_limit=0.1, limit_growth=0.6, **settings)
    mean = highest = None
    for step in range(40):  # at last it is lower than at any time before
        (kept,), (found,) = (train(each, range(step, step + 1)) for each in (plain, growing))
        loss = loss_of(step)
        mean = loss if mean is None else smoothing * mean + (1 - smoothing) * loss
        highest = max(mean, highest or mean)
        share = 0.1 + 0.6 * (1 - (mean - floor) / (highest - floor))
        assert found / kept == pytest.approx(share / 0.1, rel=1e-5)
    assert share > 0.3


@FORMS
@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_the_share_grows_while_the_loss_falls(form: dict, floor: float) -> None:
    settings = dict(lr=1.0, max_window=20, window_signal="loss", loss_smoothing=0.9, **form)
    settings |= dict(initial_window=10, loss_floor=floor, loss_limit=0.1)
    plain = DWMGrad(params_of(), **settings)
    growing = DWMGrad(params_of(), limit_slope=4.0, **settings)
    quarter = slow = None
    for step in range(40):
        (kept,), (found,) = (train(each, range(step, step + 1)) for each in (plain, growing))
        loss = loss_of(step)
        quarter = loss if quarter is None else 0.8 * quarter + 0.2 * loss
        is_full = step >= 9
        slow = slow + min(0, quarter - slow) / 20 if is_full else quarter
        share = 0.1 + 4 * max(0, 1 - (quarter - floor) / (slow - floor))
        assert found / kept == pytest.approx(share / 0.1, rel=1e-5)
    assert share > 0.3


@FORMS
def test_a_slope_that_is_switched_on_later_begins_there(form: dict) -> None:
    settings = dict(lr=1.0, max_window=6, window_signal="loss", loss_limit=0.1, **form)
    optimizer = DWMGrad(params_of(), **settings)
    train(optimizer, range(20))
    assert optimizer.param_groups[0]["slow_loss"] is None
    for group in optimizer.param_groups:
        group["limit_slope"] = 4.0
    train(optimizer, range(20, 21))
    optimizer.state_dict()
    assert optimizer.param_groups[0]["slow_loss"] == pytest.approx(loss_of(20))


@FORMS
def test_a_loss_that_rises_or_lies_below_its_floor_does_not_let_the_share_grow(form: dict) -> None:
    settings = dict(lr=1.0, preset="finetune", loss_floor=1.0, **form)
    plain = DWMGrad(params_of(), loss_limit=0.1, **settings)
    growing = DWMGrad(params_of(), loss_limit=0.1, limit_growth=0.6, **settings)
    for loss in (0.5, 1.0, 2.0, 3.0, 4.0):
        for optimizer in (plain, growing):
            for param, grad in zip(optimizer.param_groups[0]["params"], gradients(1), strict=True):
                param.grad = grad
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.step(loss=loss)
                optimizer.state_dict()
    limits = [each.param_groups[0]["step_limit"] for each in (plain, growing)]
    assert limits[0] == limits[1]


def test_a_small_learning_rate_is_not_limited_and_bit_equal() -> None:
    limited, free = params_of(), params_of()
    optimizer = DWMGrad(limited, lr=1e-6, preset="finetune", loss_limit=0.5)
    assert train(optimizer, range(20)) == [1.0] * 20
    train(DWMGrad(free, lr=1e-6, preset="finetune"), range(20))
    assert all(map(torch.equal, limited, free))


@FORMS
def test_above_a_point_the_learning_rate_cancels_out(form: dict) -> None:
    runs = []
    for lr in (1.0, 64.0):
        params = params_of()
        train(DWMGrad(params, lr=lr, preset="finetune", loss_limit=0.5, **form), range(20))
        runs.append(params)
    for one, other in zip(*runs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_schedule_is_kept() -> None:
    params = params_of()
    optimizer = DWMGrad(params, lr=1.0, preset="finetune", loss_limit=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 20)
    plain = train(DWMGrad(params_of(), lr=1.0, preset="finetune", loss_limit=0.5), range(10))
    # α k follows the schedule: k itself is that of no schedule, as α is in q, too
    first = train(optimizer, range(10), scheduler)
    assert first[:1] == plain[:1]
    assert first[1] == pytest.approx(plain[1], rel=1e-3)
    for _ in range(10):
        scheduler.step()
    before = [param.clone() for param in params]
    for buffer in (own["momentum_buffer"] for own in optimizer.state.values()):
        buffer.zero_()
    train(optimizer, range(10, 11))
    assert optimizer.param_groups[0]["lr"] == 0
    assert all(map(torch.equal, before, params))


@FORMS
def test_a_loss_at_its_floor_holds_the_last_limit_and_says_so(form: dict) -> None:
    params = params_of()
    optimizer = DWMGrad(params, lr=1.0, preset="finetune", loss_limit=0.5, loss_floor=2.0, **form)
    limits = train(optimizer, range(3))
    with pytest.warns(UserWarning, match="loss_floor=2.0, or below.*Set loss_floor"):
        for loss in (2.0, -5.0):
            optimizer.step(loss=loss)
            assert optimizer.window and optimizer.param_groups[0]["step_limit"] == limits[-1]
    assert all(bool(param.isfinite().all()) for param in params)


def test_a_step_without_a_loss_holds_the_last_limit() -> None:
    optimizer = DWMGrad(params_of(), lr=1.0, preset="finetune", loss_limit=0.5, missing_loss="hold")
    limits = train(optimizer, range(3))
    optimizer.step()
    assert optimizer.param_groups[0]["step_limit"] == limits[-1]


@FORMS
def test_a_step_whose_gradients_are_all_zero_holds_the_last_limit(form: dict) -> None:
    """The step after it may have no loss, and would be without a limit."""
    params = params_of()
    optimizer = DWMGrad(params, preset="auto", missing_loss="hold", **form)
    limits = train(optimizer, range(3))
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step(loss=2.0)
    assert optimizer.window == 9 and optimizer.param_groups[0]["step_limit"] == limits[-1] < 1
    for param, grad in zip(params, gradients(4), strict=True):
        param.grad = grad.clone()
    optimizer.step()
    assert optimizer.param_groups[0]["step_limit"] == limits[-1]


@FORMS
def test_a_resumed_run_is_the_run(form: dict) -> None:
    settings = dict(lr=1.0, preset="finetune", loss_limit=0.5, loss_floor=2.9, **form)
    settings |= {"limit_growth": 0.2, "limit_slope": 4.0, "max_window": 8, "window_signal": "loss"}
    whole = params_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = DWMGrad(whole, **settings)
        train(optimizer, range(7))
        kept, values = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in whole]
        limits = train(optimizer, range(7, 20))
        params = [torch.nn.Parameter(value) for value in values]
        optimizer = DWMGrad(params, **settings)
        optimizer.load_state_dict(kept)
        assert train(optimizer, range(7, 20)) == limits
    assert all(map(torch.equal, whole, params))


def test_gradients_that_cannot_be_squared_are_left_out() -> None:
    params, healthy = params_of(), params_of()
    optimizer = DWMGrad(params, lr=1.0, preset="finetune", loss_limit=0.5)
    other = DWMGrad(healthy, lr=1.0, preset="finetune", loss_limit=0.5)
    for own, grads in ((params, gradients(0)), (healthy, gradients(0))):
        for param, grad in zip(own, grads, strict=True):
            param.grad = grad
    params[1].grad[:3] = torch.tensor([float("nan"), float("inf"), 1e30])
    healthy[1].grad[:3] = 0
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step(loss=1.0)
    other.step(loss=1.0)
    assert optimizer.param_groups[0]["step_limit"] == pytest.approx(
        other.param_groups[0]["step_limit"], rel=1e-6
    )


@pytest.mark.skipif(native.library() is None, reason="no library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("size", [1, 15, 1024, 40_000])
def test_the_compiled_norm_is_the_loops(dtype, kind, size: int) -> None:
    param = torch.randn(size).to(dtype)
    grad = torch.randn(size).to(dtype)
    v, s = low_bit.zeros(param)
    if kind == torch.int8:
        bits = torch.zeros(size, dtype=torch.int64)
        low_bit.encode(s, torch.rand(size), bits)
    else:
        v, s = torch.zeros(size, dtype=kind), torch.rand(size).to(kind)
    tensors = Tensors([param], [grad], [v], [s], [0])
    c = Coefficients(step_size=1.0, decay=0.9, momentum=0.5, eps=1e-8, shrink=0.0)
    (expected,) = reference.squared_norms(tensors, c)
    assert native.squared_norms(tensors, c) == pytest.approx([float(expected)], rel=1e-5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert native.squared_norms(tensors, c) == native.squared_norms(tensors, c)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_limit": 0}, "loss_limit must be above 0, got 0: to go without, leave it out"),
        ({"loss_limit": -1.0}, "loss_limit must be in"),
        ({"loss_limit": "0.5"}, "loss_limit must be a number"),
        ({"limit_growth": -0.1}, r"limit_growth must be in \[0, inf\), got -0.1"),
        ({"limit_slope": -1}, r"limit_slope must be in \[0, inf\), got -1"),
        ({"loss_floor": float("inf")}, "loss_floor must be finite"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        DWMGrad(params_of(), **arguments)


@pytest.mark.parametrize(
    ("name", "value"), [("limit_growth", 0.5), ("limit_slope", 0.5), ("auto_lr", True)]
)
def test_what_needs_a_limit_is_refused_without_one(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value} needs loss_limit, which is None"):
        DWMGrad(params_of(), **{name: value})
    DWMGrad(params_of(), preset="capped", **{name: value})


def scaled(factor: float, form: dict, clips: bool = False) -> list[float]:
    """The limits where losses and gradients are so many times as large."""
    params = params_of()
    optimizer = DWMGrad(params, lr=0.1, preset="finetune", loss_limit=0.5, **form)
    found = []
    for step in range(10):
        for param, grad in zip(params, gradients(step), strict=True):
            param.grad = grad * factor
        if clips:
            optimizer.observe_clipping(torch.nn.utils.clip_grad_norm_(params, 1e-3), 1e-3)
        optimizer.step(loss=loss_of(step) * factor)
        found.append(optimizer.state_dict()["param_groups"][0]["step_limit"])
    return found


@FORMS
def test_sums_and_means_of_losses_have_one_limit(form: dict) -> None:
    assert scaled(1000.0, form) == pytest.approx(scaled(1.0, form), rel=1e-4)


@FORMS
def test_so_have_those_whose_gradients_are_always_clipped(form: dict) -> None:
    """Where each is larger by the same factor, as the sums over batches of one size."""
    limits = scaled(1.0, form, clips=True)
    assert scaled(1000.0, form, clips=True) == pytest.approx(limits, rel=1e-4)
    assert 0 < min(limits) < 1


@pytest.mark.parametrize("loss", [1e30, 1e-30, 0.5])
def test_no_loss_makes_a_step_longer_than_without_a_limit(loss: float) -> None:
    limited, free = params_of(), params_of()
    optimizers = [
        DWMGrad(limited, lr=0.1, preset="finetune", loss_limit=0.5),
        DWMGrad(free, lr=0.1, preset="finetune"),
    ]
    for optimizer in optimizers:
        train(optimizer, range(1))
    before = [[param.detach().clone() for param in params] for params in (limited, free)]
    for optimizer, params in zip(optimizers, (limited, free), strict=True):
        for param, grad in zip(params, gradients(1), strict=True):
            param.grad = grad
        optimizer.step(loss=loss)
    limit = optimizers[0].param_groups[0]["step_limit"]
    assert 0 < limit <= 1 and (limit == 1) == (loss == 1e30)
    moved, moved_free = (
        sum(float((p - old).norm()) for p, old in zip(params, olds, strict=True))
        for params, olds in zip((limited, free), before, strict=True)
    )
    assert moved <= moved_free * 1.0001


@FORMS
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clipped_gradients_do_not_hide_how_steep_the_loss_is(max_norm: float, form: dict) -> None:
    """From the first step on, a clipped gradient gives the direction of the whole one."""
    limits = []
    for clips in (False, True):
        params = params_of()
        optimizer = DWMGrad(params, lr=1.0, preset="finetune", loss_limit=0.5, **form)
        for param, grad in zip(params, gradients(0), strict=True):
            param.grad = grad
        if clips:
            norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
            optimizer.observe_clipping(norm, max_norm)
        optimizer.step(loss=1.0)
        limits.append(optimizer.state_dict()["param_groups"][0]["step_limit"])
        assert float(optimizer._feed.clipped_to) == 1.0, "for one step"
    assert limits[0] == pytest.approx(limits[1], rel=1e-3)


@FORMS
@pytest.mark.parametrize(
    "told", [[(200.0, 1.0), (0.5, 1.0)], [(200.0, 1.0), (1.0, float("inf"))]], ids=["parts", "log"]
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_of_several_clippings_what_shrank_most_counts(
    told: list, as_tensor: bool, form: dict
) -> None:
    """An encoder and its head, one after the other; or a norm that is measured for a log."""
    limits = []
    for each in (told, told[::-1], told[:1]):
        optimizer = DWMGrad(params_of(), lr=1.0, preset="finetune", loss_limit=0.5, **form)
        for norm, most in each:
            optimizer.observe_clipping(torch.tensor(norm) if as_tensor else norm, most)
        train(optimizer, range(1))
        group = optimizer.state_dict()["param_groups"][0]
        assert group["clipped_to"] == pytest.approx(1 / 200, rel=1e-5)
        limits.append(group["step_limit"])
    assert limits[0] == limits[1] == limits[2]


@FORMS
def test_what_clipping_leaves_is_a_mean_over_the_window(form: dict) -> None:
    """Of the norms, which the prediction grows with: not the largest share, nor this step's own."""
    norms = [20.0, 5.0, 10.0, 40.0, 0.5, 5.0]
    optimizer = DWMGrad(params_of(), preset="auto", max_window=3, **form)
    told = []
    for step, norm in enumerate(norms):
        optimizer.observe_clipping(torch.tensor(norm), 1.0)
        train(optimizer, [step])
        told.append(1 / optimizer.state_dict()["param_groups"][0]["clipped_to"])
    mean, expected = 0.0, []
    for step, norm in enumerate(norms):
        mean += (max(norm, 1.0) - mean) / min(step + 1, 3)
        expected.append(mean)
    assert told == pytest.approx(expected, rel=1e-5)


def test_a_norm_of_zero_changes_nothing() -> None:
    limits = []
    for tells in (False, True):
        optimizer = DWMGrad(params_of(), lr=1.0, preset="finetune", loss_limit=0.5)
        if tells:
            optimizer.observe_clipping(torch.tensor(0.0), 1.0)
        limits += train(optimizer, range(1))
    assert limits[0] == limits[1]


def test_what_is_no_norm_is_refused() -> None:
    optimizer = DWMGrad(params_of(), lr=1.0, preset="finetune", loss_limit=0.5)
    for wrong, error, name in (
        ((1.0, -1.0), ValueError, "max_norm must be at least 0"),
        ((1.0, "1"), TypeError, "max_norm must be a number"),
        ((None, 1.0), TypeError, "total_norm must be a number"),
        ((torch.ones(2), 1.0), ValueError, "total_norm must be one number"),
    ):
        with pytest.raises(error, match=name):
            optimizer.observe_clipping(*wrong)


@FORMS
@pytest.mark.parametrize("broken", [0, 2])
@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("window", [1, 100])
def test_a_step_whose_gradients_clipping_hid_says_nothing(
    broken: int, norm: float, as_tensor: bool, window: int, form: dict
) -> None:
    """An infinite norm leaves gradients of 0: the limit, and the share of clipping, hold."""
    found: dict[int | None, list] = {}
    for at in (broken, None):
        optimizer = DWMGrad(params_of(), preset="auto", max_window=window, **form)
        told = found.setdefault(at, [])
        for step in range(5):
            hidden = step == at
            total = norm if hidden else 20.0
            optimizer.observe_clipping(torch.tensor(total) if as_tensor else total, 1.0)
            params = optimizer.param_groups[0]["params"]
            for param, grad in zip(params, gradients(step), strict=True):
                param.grad = 0 * grad if hidden else grad
            optimizer.step(loss=1.0)
            group = optimizer.state_dict()["param_groups"][0]
            told.append([group[name] for name in ("step_limit", "clipped_to")])
    assert found[broken][broken] == (found[None][broken - 1] if broken else [0.0, 0.0])
    for own, other in zip(found[broken][broken + 1 :], found[None][broken + 1 :], strict=True):
        assert own[1] == pytest.approx(other[1], rel=1e-5)
        assert 0 < own[0] < 3 * other[0]


def overflowing(zeroes: str, overflows: tuple[int, ...], steps: range, form: dict, saved=None):
    """Steps under a gradient scaler, the Trainer's way: clipped before the scaler decides."""
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 1)
    optimizer = DWMGrad(model.parameters(), preset="auto", **form)
    scaler = torch.amp.GradScaler("cpu", growth_interval=1000)
    parts = (model, optimizer, scaler)
    if saved is not None:
        for part, state in zip(parts, saved, strict=True):
            part.load_state_dict(state)
    for step in steps:
        torch.manual_seed(step)
        rows = torch.randn(64, 10)
        loss = (model(rows) - 50 * rows[:, :1]).square().mean()
        scaler.scale(loss).backward()
        optimizer.observe_loss(loss)
        if step in overflows:
            model.weight.grad[0, 0] = float("inf")
        scaler.unscale_(optimizer)
        for part in (model.bias, model.weight):  # of one of them the norm stays finite
            optimizer.observe_clipping(torch.nn.utils.clip_grad_norm_(part, 1.0), 1.0)
        scaler.step(optimizer)
        scaler.update()
        (optimizer if zeroes == "optimizer" else model).zero_grad()
    return [copy.deepcopy(part.state_dict()) for part in parts]


@FORMS
@pytest.mark.parametrize("zeroes", ["optimizer", "model"])
@pytest.mark.parametrize("overflows", [(0,), (0, 1), (3,), (3, 4)])
def test_clipping_of_a_step_that_a_scaler_skips_goes_with_it(
    zeroes: str, overflows: tuple[int, ...], form: dict
) -> None:
    """The Trainer clips, lets the scaler skip, and clears the model's gradients itself."""
    shares = [
        overflowing(zeroes, own, range(8), form)[1]["param_groups"][0]["clipped_to"]
        for own in (overflows, ())
    ]
    assert 0 < shares[0] < 2 * shares[1] < 0.1


def test_a_clipping_counts_for_the_step_that_it_was_told_for_alone() -> None:
    def shares(*told: Any) -> list[float]:
        """After each step: of a number told, made; None: the scaler skips; "error": it raises."""
        optimizer = DWMGrad(params_of(), preset="auto", missing_loss="error")
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        found = []
        for step, how in enumerate(told):
            for param, grad in zip(
                optimizer.param_groups[0]["params"], gradients(step), strict=True
            ):
                param.grad = grad.clone()
            optimizer.observe_clipping(20.0 if isinstance(how, float) else 1e4, 1.0)
            if how is None:
                optimizer.param_groups[0]["params"][0].grad[0] = float("inf")
                scaler.scale(torch.ones(()))  # which makes its scale
                scaler.step(optimizer)
                scaler.update()
            elif how == "error":
                with pytest.raises(RuntimeError, match="no loss"):
                    optimizer.step()
            else:
                optimizer.step(loss=how)
            found.append(optimizer.param_groups[0]["clipped_to"])
        return found

    assert shares(1.0)[-1] == pytest.approx(0.05)
    assert shares(None, 1.0)[-1] == pytest.approx(0.05)
    assert shares("error", 1.0)[-1] == pytest.approx(0.05)
    assert shares("error", None, 1.0, None, "error", 1.0)[-1] == pytest.approx(0.05)


def test_the_clipping_of_a_step_that_was_made_is_not_that_of_the_next() -> None:
    """Also where the step's own warning is raised as an error."""
    optimizer = DWMGrad(params_of(), preset="auto")
    for step, norm in ((0, 1e4), (1, None)):
        for param, grad in zip(optimizer.param_groups[0]["params"], gradients(step), strict=True):
            param.grad = grad.clone()
        if norm:
            optimizer.observe_clipping(norm, 1.0)
            optimizer.param_groups[0]["params"][0].grad[0] = float("nan")
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                with pytest.raises(UserWarning, match="element"):
                    optimizer.step(loss=1.0)
            assert optimizer.param_groups[0]["clipped_to"] == pytest.approx(1e-4)
        else:
            optimizer.step(loss=1.0)
    # the mean norm of these two steps: (1e4 + 1) / 2
    assert optimizer.param_groups[0]["clipped_to"] == pytest.approx(2 / (1e4 + 1))


def test_a_step_that_raises_and_is_made_again_has_its_clipping() -> None:
    optimizer = DWMGrad(params_of(), preset="auto", missing_loss="error")
    for param, grad in zip(optimizer.param_groups[0]["params"], gradients(0), strict=True):
        param.grad = grad
    optimizer.observe_clipping(20.0, 1.0)
    with pytest.raises(RuntimeError, match="no loss"):
        optimizer.step()
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[0]["clipped_to"] == pytest.approx(0.05)


@pytest.mark.parametrize("gives_up", ["zero_grad", "discard_loss"])
def test_the_clipping_of_gradients_that_are_given_up_goes_with_them(gives_up: str) -> None:
    """Also after a step that raised."""
    optimizer = DWMGrad(params_of(), preset="auto", missing_loss="error")
    for step in range(2):
        for param, grad in zip(optimizer.param_groups[0]["params"], gradients(step), strict=True):
            param.grad = grad
        if step == 0:
            optimizer.observe_clipping(1e4, 1.0)
            with pytest.raises(RuntimeError, match="no loss"):
                optimizer.step()
            getattr(optimizer, gives_up)()
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[0]["clipped_to"] == 1.0


@pytest.mark.parametrize("stop", range(1, 7))
def test_a_run_that_resumes_after_a_skipped_step_is_bit_equal(stop: int) -> None:
    """What was clipped before the skip is in no checkpoint, and counts nowhere."""
    whole = overflowing("model", (0, 3, 4), range(8), {})
    saved = overflowing("model", (0, 3, 4), range(stop), {})
    resumed = overflowing("model", (0, 3, 4), range(stop, 8), {}, saved)
    assert torch.equal(whole[0]["weight"], resumed[0]["weight"])
    assert whole[1]["param_groups"] == resumed[1]["param_groups"]


def test_one_number_is_predicted_alike_on_the_host_and_on_the_device() -> None:
    limits = []
    for form in ({}, {"capturable": True}):
        params = [torch.ones(size).requires_grad_() for size in ((), (3,))]
        optimizer = DWMGrad(params, lr=1.0, preset="finetune", loss_limit=0.5, **form)
        params[0].grad, params[1].grad = torch.tensor(1e25), torch.ones(3)
        with pytest.warns(UserWarning, match="not finite, or whose square is not"):
            optimizer.step(loss=1.0)
            limits.append(optimizer.state_dict()["param_groups"][0]["step_limit"])
    assert limits[0] == pytest.approx(limits[1]) and limits[0] > 1e-3
