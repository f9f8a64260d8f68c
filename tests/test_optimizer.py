"""The rule, step by step: routes of the loss, groups, schedulers, odd parameters."""

import math

import numpy as np
import pytest
import torch
from rule import Rule

from dwmgrad import DWMGrad

SIGNALS = ["decrease", "increase", "loss"]


def problem(step: int) -> tuple[float, np.ndarray]:
    """A wandering loss with its gradient at a step, the same for both sides of a comparison."""
    generator = np.random.default_rng(step)
    return float(2 + math.sin(step) + generator.normal()), generator.normal(size=7)


@pytest.mark.parametrize("fused", [None, False], ids=["fastest", "loop"])
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_80_steps_equal_the_rule_in_float64(
    signal: str, weight_decay: float, fused: bool | None
) -> None:
    rule = Rule(np.arange(7.0), lr=1e-2, signal=signal, weight_decay=weight_decay)
    param = torch.arange(7.0, dtype=torch.float64, requires_grad=True)
    optimizer = DWMGrad(
        [param], lr=1e-2, window_signal=signal, weight_decay=weight_decay, fused=fused
    )
    for step in range(80):
        loss, gradient = problem(step)
        rule.step(loss, gradient)
        param.grad = torch.from_numpy(gradient)
        optimizer.step(loss=loss)
        assert optimizer.window == rule.window
        np.testing.assert_allclose(param.detach().numpy(), rule.theta, rtol=1e-10, atol=1e-10)


BEYOND = {
    "smoothed": {"loss_smoothing": 0.9},
    "corrected": {"bias_correction": True},
    "normalized": {"normalize_momentum": True},
    "of its own": {"second_moment_window": 40},
    "all": {
        "loss_smoothing": 0.8,
        "bias_correction": True,
        "normalize_momentum": True,
        "second_moment_window": 25,
        "eps": 1e-2,
    },
}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("case", BEYOND)
def test_what_goes_beyond_the_paper_equals_its_rule_in_float64(case: str, signal: str) -> None:
    settings = {"lr": 1e-2, "weight_decay": 0.1, "max_window": 30, **BEYOND[case]}
    rule = Rule(np.arange(7.0), signal=signal, **settings)
    param = torch.arange(7.0, dtype=torch.float64, requires_grad=True)
    optimizer = DWMGrad([param], window_signal=signal, **settings)
    for step in range(80):
        loss, gradient = problem(step)
        rule.step(loss, gradient)
        param.grad = torch.from_numpy(gradient)
        optimizer.step(loss=loss)
        assert optimizer.window == rule.window
        np.testing.assert_allclose(param.detach().numpy(), rule.theta, rtol=1e-10, atol=1e-10)


def test_with_bias_correction_the_first_step_is_lr() -> None:
    param = torch.zeros(3, requires_grad=True)
    optimizer = DWMGrad([param], lr=0.01, bias_correction=True, second_moment_window=200)
    param.grad = torch.tensor([1.0, -5.0, 0.1])
    optimizer.step(loss=1.0)
    torch.testing.assert_close(param.detach(), torch.tensor([-0.01, 0.01, -0.01]))


def walk(gradients: np.ndarray, size: int, losses: tuple[float, ...]) -> np.ndarray:
    """One parameter's steps with max_window 20; a positive loss lengthens the window."""
    param = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = DWMGrad(
        [param],
        lr=0.01,
        window_signal="loss",
        max_window=20,
        bias_correction=True,
        initial_window=size,
        normalize_momentum=True,
    )
    seen = [0.0]
    for step, gradient in enumerate(gradients):
        param.grad = torch.full_like(param, gradient)
        optimizer.step(loss=losses[step % len(losses)])
        seen.append(float(param.detach()))
    return np.diff(seen)


def test_with_normalized_momentum_the_total_effect_at_half_the_window_is_lr() -> None:
    steps = walk(np.full(400, 3.0), 10, (1.0, -1.0))  # the window is 11, 10, 11, ...
    assert steps[-100:].mean() == pytest.approx(-0.01, rel=0.05)


@pytest.mark.parametrize(("size", "losses"), [(20, (1.0,)), (1, (-1.0,)), (10, (1.0, -1.0))])
def test_with_normalized_momentum_noise_moves_a_parameter_as_far_at_any_window(
    size, losses
) -> None:
    noise = np.random.default_rng(0).choice([-1.0, 1.0], 4000)
    expected = 0.01 * math.sqrt((1 - 0.45) / (1 + 0.45))
    assert walk(noise, size, losses).std() == pytest.approx(expected, rel=0.03)


def test_rosenbrock_ends_where_the_authors_end() -> None:
    point = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    optimizer = DWMGrad([point], lr=1e-3, max_window=15)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (1 - point[0]) ** 2 + 100 * (point[1] - point[0] ** 2) ** 2
        loss.backward()
        return loss

    for _ in range(1000):
        optimizer.step(closure)
    torch.testing.assert_close(
        point.detach(),
        torch.tensor([1.00528951, 1.01149244], dtype=torch.float64),
        rtol=0,
        atol=1e-8,
    )


def test_the_first_step_is_twice_lr() -> None:
    param = torch.zeros(3, requires_grad=True)
    optimizer = DWMGrad([param], lr=0.01)
    param.grad = torch.tensor([1.0, -5.0, 0.1])
    optimizer.step(loss=1.0)
    assert optimizer.window == 4
    torch.testing.assert_close(param.detach(), torch.tensor([-0.02, 0.02, -0.02]))


def route_observe(optimizer: DWMGrad, loss: torch.Tensor) -> None:
    loss.backward()
    optimizer.observe_loss(loss)
    optimizer.step()


def route_micro_batches(optimizer: DWMGrad, loss: torch.Tensor) -> None:
    for part in (loss * 0.25, loss * 0.75):
        optimizer.observe_loss(part)
        part.backward(retain_graph=True)
    optimizer.step()


def route_argument(optimizer: DWMGrad, loss: torch.Tensor) -> None:
    loss.backward()
    assert optimizer.step(loss=loss) is loss


def route_number(optimizer: DWMGrad, loss: torch.Tensor) -> None:
    loss.backward()
    optimizer.step(loss=loss.item())


def route_closure(optimizer: DWMGrad, loss: torch.Tensor) -> None:
    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        loss.backward()
        return loss

    assert optimizer.step(closure) is loss


def route_plain_closure(optimizer: DWMGrad, loss: torch.Tensor) -> None:
    loss.backward()
    optimizer.step(lambda: loss.item())


ROUTES = [
    route_observe,
    route_micro_batches,
    route_argument,
    route_number,
    route_closure,
    route_plain_closure,
]


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_of_the_loss_gives_the_same_trajectory(route) -> None:
    model, inputs = torch.nn.Linear(5, 2).double(), torch.randn(30, 16, 5).double()
    optimizer = DWMGrad(model.parameters(), lr=1e-2)
    windows = []
    for batch in inputs:
        optimizer.zero_grad()
        route(optimizer, (model(batch) - 1).square().mean())
        windows.append(optimizer.window)
    torch.manual_seed(0)
    other, inputs = torch.nn.Linear(5, 2).double(), torch.randn(30, 16, 5).double()
    rules = [Rule(p.detach().numpy(), lr=1e-2) for p in other.parameters()]
    expected = []
    for batch in inputs:
        other.zero_grad()
        loss = (other(batch) - 1).square().mean()
        loss.backward()
        for rule, param in zip(rules, other.parameters(), strict=True):
            rule.step(loss.item(), param.grad.numpy())
            param.data = torch.from_numpy(rule.theta.copy())
        expected.append(rules[0].window)
    assert windows == expected
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_groups_have_their_own_settings_and_one_window() -> None:
    params = [torch.ones(4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    optimizer = DWMGrad(
        [
            {"params": [params[0]], "lr": 1e-2, "weight_decay": 0.1},
            {"params": [params[1]], "momentum": 0.5, "eps": 1e-3},
            {"params": []},
            {"params": [params[2]], "maximize": True},
        ],
        lr=1e-3,
    )
    rules = [
        Rule(np.ones(4), lr=1e-2, weight_decay=0.1),
        Rule(np.ones(4), momentum=0.5, eps=1e-3),
        Rule(np.ones(4)),
    ]
    for step in range(20):
        loss, gradient = problem(step)[0], problem(step)[1][:4]
        for param, rule, sign in zip(params, rules, (1, 1, -1), strict=True):
            param.grad = torch.from_numpy(gradient * sign)
            rule.step(loss, gradient)
        optimizer.step(loss=loss)
        assert {group["window"] for group in optimizer.param_groups} == {rules[0].window}
    for param, rule in zip(params, rules, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), rule.theta, rtol=1e-10)


def test_a_group_added_later_joins_at_the_present_window() -> None:
    first, second = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = DWMGrad([first], window_signal="loss")
    first.grad = torch.ones(2)
    for _ in range(3):
        optimizer.step(loss=1.0)
    optimizer.add_param_group({"params": [second], "lr": 0.1})
    assert [group["window"] for group in optimizer.param_groups] == [8, 8]
    second.grad = torch.ones(2)
    optimizer.step(loss=1.0)
    assert [group["window"] for group in optimizer.param_groups] == [9, 9]


def test_groups_may_be_made_anew_between_two_steps() -> None:
    first, second = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = DWMGrad([{"params": [first], "lr": 0.0}, {"params": [second]}], lr=0.1)

    def step() -> tuple[float, float]:
        first.grad, second.grad = torch.ones(2), torch.ones(2)
        optimizer.step(loss=1.0)
        return first[0].item(), second[0].item()

    at = [step()[1]]
    optimizer.add_param_group({"params": []})
    at.append(step()[1])
    optimizer.param_groups[0]["params"].append(optimizer.param_groups[1]["params"].pop())
    at.append(step()[1])
    assert at[1] - at[2] < at[0] - at[1], "its momentum alone: the rate of its group is 0"


def test_a_setting_of_all_groups_is_written_into_all() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = DWMGrad([{"params": [param]} for param in params])
    for param in params:
        param.grad = torch.ones(2)
    optimizer.param_groups[0]["max_window"] = 50
    with pytest.raises(ValueError, match="max_window is one for the whole optimizer: it is 50"):
        optimizer.step(loss=1.0)
    assert all(bool((param == 1).all()) for param in params)
    optimizer.param_groups[1]["max_window"] = 50
    optimizer.step(loss=1.0)
    DWMGrad([{"params": [param]} for param in params]).load_state_dict(optimizer.state_dict())


def test_an_optimizer_of_nothing_steps() -> None:
    for preset in (None, "auto"):
        optimizer = DWMGrad([{"params": []}], preset=preset, missing_loss="hold")
        optimizer.step(loss=1.0)
        optimizer.step()
        optimizer.step(loss=1.0)


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(step / 3, 1.0)),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=12),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.5),
    ],
    ids=["warm-up from 0", "cosine", "one cycle", "exponential"],
)
def test_any_scheduler_may_change_the_learning_rate(scheduler, tensor_lr: bool) -> None:
    param = torch.ones(3, dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.05, dtype=torch.float64) if tensor_lr else 0.05
    optimizer = DWMGrad([param], lr=lr)
    schedule = scheduler(optimizer)
    rule = Rule(np.ones(3))
    for step in range(10):
        group = optimizer.param_groups[0]
        rule.lr, rule.momentum = float(group["lr"]), group["momentum"]
        loss, gradient = problem(step)[0], problem(step)[1][:3]
        param.grad = torch.from_numpy(gradient)
        rule.step(loss, gradient)
        optimizer.step(loss=loss)
        schedule.step()
    np.testing.assert_allclose(param.detach().numpy(), rule.theta, rtol=1e-10)


def test_what_can_be_looked_at() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = DWMGrad([param], max_window=100)
    assert (optimizer.window, optimizer.last_loss) == (5, None)
    assert optimizer.effective_momentum == pytest.approx(0.045)
    param.grad = torch.ones(2)
    optimizer.step(loss=torch.tensor(0.25))
    assert (optimizer.window, optimizer.last_loss) == (4, 0.25)


def test_odd_parameters_are_taken_as_they_come() -> None:
    frozen = torch.ones(2)
    without_gradient = torch.ones(2, requires_grad=True)
    empty = torch.ones(0, 3, requires_grad=True)
    scalar = torch.ones((), requires_grad=True)
    optimizer = DWMGrad([frozen, without_gradient, empty, scalar])
    empty.grad, scalar.grad = torch.ones(0, 3), torch.ones(())
    optimizer.step(loss=1.0)
    assert frozen not in optimizer.state
    assert all(
        set(optimizer.state[p]) == {"momentum_buffer", "square_avg", "zero_share"}
        for p in (without_gradient, empty, scalar)
    )
    assert torch.equal(without_gradient, torch.ones(2))
    assert scalar < 1


def test_a_sparse_gradient_is_refused_and_nothing_changes() -> None:
    embedding, linear = torch.nn.Embedding(5, 2, sparse=True), torch.nn.Linear(2, 1)
    optimizer = DWMGrad([*linear.parameters(), *embedding.parameters()])
    before = [p.clone() for p in linear.parameters()]
    loss = linear(embedding(torch.tensor([1, 2]))).sum()
    loss.backward()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="dense gradients.*sparse=False"):
            optimizer.step(loss=loss)
    assert all(map(torch.equal, before, linear.parameters()))
    assert (optimizer.window, optimizer.last_loss, len(optimizer.state)) == (5, None, 0)


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -1.0])
def test_a_learning_rate_that_a_scheduler_has_spoilt_is_refused(lr: float) -> None:
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    optimizer = DWMGrad([param])
    optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(ValueError, match="lr of parameter group 0 must be in"):
        optimizer.step(loss=1.0)
    assert (optimizer.window, param.tolist(), len(optimizer.state)) == (5, [1.0, 1.0], 0)


@pytest.mark.parametrize(
    "arguments", [{}, {"preset": "auto"}, {"capturable": True}], ids=["", "auto", "capturable"]
)
def test_a_schedule_may_end_below_zero_by_rounding(arguments: dict) -> None:
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    optimizer = DWMGrad([param], lr=1e-3, **arguments)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, end_factor=0.0, total_iters=50)
    for _ in range(52):
        optimizer.step(loss=1.0)
        schedule.step()
    assert optimizer.param_groups[0]["lr"] < 0
    other = DWMGrad([torch.ones(2, requires_grad=True)], lr=1e-3)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert other.window == optimizer.window and bool(param.isfinite().all())


def test_500_steps_leave_no_more_behind_than_one() -> None:
    import gc

    param = torch.ones(10, requires_grad=True)
    optimizer = DWMGrad([param])

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    def step() -> None:
        param.grad = torch.ones(10)
        optimizer.step(loss=param.sum())

    step()
    before = tensors()
    for _ in range(500):
        step()
    assert tensors() == before


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_two_devices_moves_on_both() -> None:
    """What each device says of skipped elements is added up on one of them."""
    params = [torch.ones(9, device=f"cuda:{index}", requires_grad=True) for index in range(2)]
    optimizer = DWMGrad(params, lr=0.1)
    for step in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
            param.grad[0] = math.nan
        optimizer.step(loss=1.0 - step / 10)
    for param in params:
        assert param[0] == 1 and bool((param[1:] < 1).all())
