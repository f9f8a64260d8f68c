"""The presets `auto` and `capped`: the loss sets the size of the step."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dwmgrad import DWMGrad
from dwmgrad.limit import AUTO_LR
from dwmgrad.presets import PAPER, PRESETS

SIZES = (3, 300, 5000)
FORMS = pytest.mark.parametrize("form", [{}, {"capturable": True}], ids=["host", "capturable"])
C, GROWTH = PRESETS["auto"]["loss_limit"], PRESETS["auto"]["limit_growth"]
MOMENTUM = PRESETS["auto"]["momentum"]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(size, generator=generator) * (1 + step % 3) for size in SIZES]


def loss_of(step: int) -> float:
    return 3.0 - 0.05 * step + 0.1 * (step % 3)


def optimizer_of(lr: float = 1e-3, **settings: Any) -> DWMGrad:
    params = [torch.nn.Parameter(torch.linspace(-1, 1, size)) for size in SIZES]
    return DWMGrad(params, lr=lr, **{"preset": "auto", **settings})


def params_of(optimizer: DWMGrad) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def train(
    optimizer: DWMGrad,
    steps: range,
    lr_of: Callable[[int], float] | None = None,
    scheduler: Any = None,
    loss_of: Callable[[int], float] = loss_of,
) -> list[float]:
    """The effective learning rates of the steps."""
    found = []
    for step in steps:
        if lr_of is not None:
            for group in optimizer.param_groups:
                group["lr"] = lr_of(step)
        for param, grad in zip(params_of(optimizer), gradients(step), strict=True):
            param.grad = grad
        optimizer.step(loss=loss_of(step))
        found.append(optimizer.effective_lr)
        if scheduler is not None:
            scheduler.step()
    return found


def are_equal(one: DWMGrad, other: DWMGrad) -> bool:
    return all(map(torch.equal, params_of(one), params_of(other)))


def oracle(steps: int, decay: float, floor: float) -> tuple[list[np.ndarray], list[float]]:
    """Parameters and effective learning rates, from the sentences of the docs alone."""
    theta = [np.linspace(-1, 1, size) for size in SIZES]
    v, s = ([np.zeros(size) for size in SIZES] for _ in range(2))
    window, rates = 5, []
    mean = highest = loss_of(0)
    for step in range(steps):
        window = min(window + 1, 100)
        mean = 0.9 * mean + 0.1 * loss_of(step)
        highest = max(highest, mean)
        share = C + GROWTH * (1 - (mean - floor) / (highest - floor))
        g = [each.double().numpy() for each in gradients(step)]
        s = [0.999 * si + 0.001 * gi**2 for si, gi in zip(s, g, strict=True)]
        roots = [np.sqrt(si / (1 - 0.999 ** (step + 1))) + 1e-8 for si in s]
        mu = MOMENTUM * window / 100
        q = sum((gi**2 / root).sum() for gi, root in zip(g, roots, strict=True)) / (1 - mu)
        alpha = min(0.03, share * window / 100 * (loss_of(step) - floor) / q)
        rates.append(alpha / (1 - mu))
        for i in range(len(SIZES)):
            v[i] = mu * v[i] + alpha * g[i] / roots[i]
            theta[i] = theta[i] * (1 - alpha * decay) - v[i]
    return theta, rates


@pytest.mark.parametrize(
    "form",
    [{}, {"fused": False}, {"foreach": True}, {"capturable": True}],
    ids=["native", "loop", "foreach", "capturable"],
)
@pytest.mark.parametrize("floor", [0.0, -100.0])
def test_it_is_the_rule(form: dict, floor: float) -> None:
    optimizer = optimizer_of(weight_decay=0.1, loss_floor=floor, **form)
    rates = train(optimizer, range(40))
    expected, expected_rates = oracle(40, 0.1, floor)
    assert rates == pytest.approx(expected_rates, rel=1e-5)
    for param, theta in zip(params_of(optimizer), expected, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), theta, rtol=1e-4, atol=1e-6)


@FORMS
def test_the_learning_rate_does_not_matter(form: dict) -> None:
    first, *others = runs = [optimizer_of(lr, **form) for lr in (5e-5, 1e-3, 3.0)]
    for optimizer in runs:
        train(optimizer, range(20))
    assert all(are_equal(first, other) for other in others)


@FORMS
def test_a_scheduler_gives_the_shape(form: dict) -> None:
    plain, scheduled = optimizer_of(**form), optimizer_of(**form)
    scheduler = torch.optim.lr_scheduler.LambdaLR(scheduled, lambda step: 1 - step / 20)
    rates, decayed = train(plain, range(20)), train(scheduled, range(20), scheduler=scheduler)
    assert decayed == pytest.approx([r * (1 - i / 20) for i, r in enumerate(rates)], rel=1e-5)
    assert scheduled.param_groups[0]["lr"] == 0


@FORMS
def test_a_loop_that_writes_lr_gives_the_same_shape(form: dict) -> None:
    """As in nanoGPT: the peak is the lr that the optimizer was made with."""
    scheduled, written = optimizer_of(1e-3, **form), optimizer_of(1e-3, **form)
    scheduler = torch.optim.lr_scheduler.LambdaLR(scheduled, lambda step: 1 - step / 20)
    train(scheduled, range(20), scheduler=scheduler)
    train(written, range(20), lr_of=lambda step: 1e-3 * (1 - step / 20))
    assert are_equal(scheduled, written)


@FORMS
def test_one_cycle_gives_the_shape(form: dict) -> None:
    optimizer = optimizer_of(1e-3, **form)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=20, cycle_momentum=False
    )
    rates = train(optimizer, range(19), scheduler=scheduler)
    plain = train(optimizer_of(1e-3, **form), range(19))
    shares = [rate / full for rate, full in zip(rates, plain, strict=True)]
    assert max(shares) == pytest.approx(1, rel=1e-3)
    assert shares[0] == pytest.approx(1 / 25, rel=1e-3)


@FORMS
def test_groups_keep_their_ratio(form: dict) -> None:
    params = [torch.nn.Parameter(torch.zeros(size)) for size in (400, 400)]
    groups = [{"params": params[:1], "lr": 1e-3}, {"params": params[1:], "lr": 1e-4}]
    optimizer = DWMGrad(groups, preset="auto", **form)
    for param in params:
        param.grad = torch.ones(400)
    optimizer.step(loss=1.0)
    assert float(params[0][0]) == pytest.approx(10 * float(params[1][0]), rel=1e-5)


@FORMS
@pytest.mark.parametrize("loss", [1e30, 1.0])
def test_no_step_is_longer_than_its_bound(loss: float, form: dict) -> None:
    """However large the loss and however small the gradients."""
    optimizer = optimizer_of(**form)
    before = [param.detach().clone() for param in params_of(optimizer)]
    for param, grad in zip(params_of(optimizer), gradients(0), strict=True):
        param.grad = grad * 1e-6
    optimizer.step(loss=loss)
    for param, old in zip(params_of(optimizer), before, strict=True):
        assert float((param - old).abs().max()) <= AUTO_LR * 1.0001


@FORMS
def test_losses_at_the_floor_hold_the_step_and_say_so(form: dict) -> None:
    optimizer = optimizer_of(**form)
    train(optimizer, range(5))
    limit = optimizer.state_dict()["param_groups"][0]["step_limit"]
    with pytest.warns(UserWarning, match="loss_floor=0.0, or below"):
        train(optimizer, range(5, 9), loss_of=lambda step: -1.0)
        assert optimizer.state_dict()["param_groups"][0]["step_limit"] == limit
    below = optimizer_of(loss_floor=-10.0, **form)
    train(below, range(9), loss_of=lambda step: -1.0 - 0.1 * step)
    assert below.window == 14, "with a floor below them, negative losses are losses"


@FORMS
def test_one_loss_of_a_hundred_times_does_no_harm(form: dict) -> None:
    """Its gradients are as much larger, so that the step is hardly longer."""
    optimizer = optimizer_of(**form)
    rates = train(optimizer, range(30))
    for param, grad in zip(params_of(optimizer), gradients(30), strict=True):
        param.grad = 100 * grad
    optimizer.step(loss=100 * loss_of(30))
    assert optimizer.effective_lr < 2 * max(rates)


@FORMS
def test_a_resumed_run_is_the_run(form: dict) -> None:
    whole, part = optimizer_of(**form), optimizer_of(**form)
    for optimizer in (whole, part):
        optimizer.expect_steps(100)
    train(whole, range(20), lr_of=lambda step: 1e-3 * (1 - step / 40))
    train(part, range(7), lr_of=lambda step: 1e-3 * (1 - step / 40))
    resumed = optimizer_of(0.5, **form)
    resumed.load_state_dict(copy.deepcopy(part.state_dict()))
    resumed.expect_steps(5)  # too late: the run has begun
    with torch.no_grad():
        for ours, theirs in zip(params_of(resumed), params_of(part), strict=True):
            ours.copy_(theirs)
    train(resumed, range(7, 20), lr_of=lambda step: 1e-3 * (1 - step / 40))
    assert are_equal(whole, resumed)


def test_the_window_follows_the_length_of_the_run() -> None:
    optimizer = optimizer_of()
    optimizer.expect_steps(1000)
    assert (optimizer.window, optimizer.param_groups[0]["max_window"]) == (10, 200)
    optimizer.expect_steps(2)
    assert (optimizer.window, optimizer.param_groups[0]["max_window"]) == (1, 1)
    train(optimizer, range(1))
    optimizer.expect_steps(1000)
    assert optimizer.param_groups[0]["max_window"] == 1
    begun = copy.deepcopy(optimizer_of(initial_window=3))
    for steps, numbers in ((1000, (3, 200)), (10, (2, 2))):
        begun.expect_steps(steps)
        assert (begun.window, begun.param_groups[0]["max_window"]) == numbers
    for other in (
        optimizer_of(max_window=50),
        DWMGrad([torch.nn.Parameter(torch.zeros(1))], preset="finetune"),
    ):
        before = other.param_groups[0]["max_window"]
        other.expect_steps(1000)
        assert other.param_groups[0]["max_window"] == before


@FORMS
def test_the_window_grows_at_every_step_whatever_its_micro_batches(form: dict) -> None:
    optimizer = optimizer_of(initial_window=5, max_window=100, **form)
    for step in range(12):
        for param, grad in zip(params_of(optimizer), gradients(step), strict=True):
            param.grad = grad
        for _ in range(count := 1 + step % 5):
            optimizer.observe_loss(loss_of(step) / count)
        optimizer.step()
    assert optimizer.window == 17
    assert optimizer.state_dict()["param_groups"][0]["increases"] == 12


@pytest.mark.parametrize("steps", [0, -1, 1.5, "10", True])
def test_a_length_that_is_none_is_refused(steps: Any) -> None:
    optimizer = optimizer_of()
    with pytest.raises((TypeError, ValueError), match="steps must be"):
        optimizer.expect_steps(steps)
    assert optimizer.param_groups[0]["max_window"] == 100


def test_a_learning_rate_of_0_leaves_no_schedule_and_says_so() -> None:
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    with pytest.warns(UserWarning, match="lr is 0, .* Leave lr out"):
        optimizer_of(lr=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DWMGrad([{"params": params[:1]}, {"params": params[1:], "lr": 0.0}], preset="auto")
        DWMGrad(params, lr=0.0, preset="capped")  # as in torch's optimizers


def test_checkpoints_before_it_had_no_peak() -> None:
    optimizer = optimizer_of()
    train(optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["peak_lr"] = None
    optimizer.load_state_dict(saved)
    train(optimizer, range(3, 5))
    saved["param_groups"][0]["peak_lr"] = "high"
    with pytest.raises(TypeError, match="peak_lr must be a number or None"):
        optimizer.load_state_dict(saved)


@FORMS
def test_capped_takes_a_learning_rate_as_a_ceiling(form: dict) -> None:
    """A low rate is taken as it is, and a high one is what `auto` allows with the same share."""
    names = ("momentum", "loss_limit", "limit_growth", "limit_slope")
    shares = {name: PRESETS["capped"].get(name, PAPER[name]) for name in names}
    form = {**form, "preset": "capped"}
    low = optimizer_of(1e-7, **form)
    train(low, range(10))
    assert low.state_dict()["param_groups"][0]["step_limit"] == 1.0
    high, auto = optimizer_of(1.0, **form), optimizer_of(**form | shares | {"preset": "auto"})
    assert train(high, range(20)) == pytest.approx(train(auto, range(20)), rel=1e-5)
    for one, other in zip(params_of(high), params_of(auto), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "made", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_a_copy_follows_the_length_too(made: Callable[[DWMGrad], DWMGrad]) -> None:
    copied = made(optimizer_of())
    copied.expect_steps(1000)
    assert copied.param_groups[0]["max_window"] == 200
    loaded = optimizer_of()
    loaded.load_state_dict(optimizer_of(preset="finetune").state_dict())
    loaded.expect_steps(1000)
    assert loaded.param_groups[0]["max_window"] == 100, "the window of finetune is not auto's"


@FORMS
@pytest.mark.parametrize("first", [True, False])
def test_a_group_at_rest_says_nothing_of_the_others(first: bool, form: dict) -> None:
    """As frozen layers, of which a scheduler holds the learning rate at 0."""
    alone = [torch.nn.Parameter(torch.linspace(-1, 1, 300))]
    still = [torch.nn.Parameter(torch.ones(20))]
    groups = [{"params": alone, "lr": 1e-3}, {"params": still, "lr": 0.0}]
    optimizer = DWMGrad(groups[::-1] if first else groups, preset="auto", **form)
    kept = DWMGrad([torch.nn.Parameter(alone[0].detach().clone())], preset="auto", **form)
    for step in range(10):
        for param in (*alone, *params_of(kept)):
            param.grad = gradients(step)[1]
        for each in (optimizer, kept):
            each.step(loss=loss_of(step))
        assert optimizer.effective_lr == kept.effective_lr > 0
    assert torch.equal(alone[0], params_of(kept)[0]) and bool((still[0] == 1).all())


@FORMS
@pytest.mark.parametrize("loss", [None, 0.0, -1.0])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_before_the_first_loss_that_says_how_far_there_is_no_step(
    loss: float | None, form: dict
) -> None:
    optimizer = optimizer_of(missing_loss="hold", **form)
    before = [param.detach().clone() for param in params_of(optimizer)]
    for step in range(3):
        for param, grad in zip(params_of(optimizer), gradients(step), strict=True):
            param.grad = grad
        optimizer.step(loss=loss)
    assert all(map(torch.equal, params_of(optimizer), before)) and optimizer.effective_lr == 0
    train(optimizer, range(3, 4))
    assert not any(map(torch.equal, params_of(optimizer), before))
    ceiling = optimizer_of(preset="capped", missing_loss="hold", **form)
    params_of(ceiling)[0].grad = torch.ones(3)
    ceiling.step(loss=loss)
    assert not torch.equal(params_of(ceiling)[0], before[0]), "its learning rate is a limit, too"


@FORMS
def test_the_schedule_is_that_of_the_largest_learning_rate(form: dict) -> None:
    """A group that joins at its peak, or was made with 0, does not hold the others up."""
    for lr in (1e-4, 0.0):
        optimizer, alone = optimizer_of(1.0, **form), optimizer_of(1.0, **form)
        late = torch.nn.Parameter(torch.zeros(2))  # without a gradient
        for each, steps in ((optimizer, 10), (alone, 20)):
            train(each, range(steps), lr_of=lambda step: 1 - step / 20)
        optimizer.add_param_group({"params": [late], "lr": lr})
        for step in range(10, 20):
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 1 - step / 20, 1e-4
            for param, grad in zip(params_of(optimizer), gradients(step), strict=False):
                param.grad = grad
            optimizer.step(loss=loss_of(step))
        assert all(map(torch.equal, params_of(optimizer), params_of(alone)))


def test_with_capturable_the_length_is_too_late_after_the_first_step_as_well() -> None:
    optimizer = optimizer_of(capturable=True)
    for param, grad in zip(params_of(optimizer), gradients(0), strict=True):
        param.grad = grad
    optimizer.step(loss=1.0)  # and nothing reads the device
    optimizer.expect_steps(1000)
    assert optimizer.param_groups[0]["max_window"] == 100


def test_a_limit_that_was_set_off_by_hand_is_saved_and_loaded() -> None:
    optimizer = optimizer_of(preset="capped")
    optimizer.param_groups[0]["loss_limit"] = None
    train(optimizer, range(2))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    other = optimizer_of(preset="capped")
    other.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with pytest.warns(UserWarning, match="loss_limit is None there"):
        other.load_state_dict(optimizer.state_dict())


@FORMS
def test_a_state_of_before_the_first_loss_brings_no_full_step(form: dict) -> None:
    """Earlier versions wrote a limit of 1 there."""
    saved = optimizer_of().state_dict()
    for group in saved["param_groups"]:
        group["step_limit"] = 1.0
    optimizer = optimizer_of(missing_loss="hold", **form)
    optimizer.load_state_dict(saved)
    params_of(optimizer)[0].grad = torch.ones(3)
    before = params_of(optimizer)[0].detach().clone()
    optimizer.step()
    assert torch.equal(params_of(optimizer)[0], before)
