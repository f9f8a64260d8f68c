"""Every way in which a loss can be missing, doubled, stale, skipped or no loss at all."""

import inspect
import warnings

import numpy as np
import pytest
import torch

from dwmgrad import DWMGrad


def make(**arguments) -> tuple[torch.Tensor, DWMGrad]:
    param = torch.ones(3, requires_grad=True)
    optimizer = DWMGrad([param], **arguments)
    param.grad = torch.ones(3)
    optimizer.step(loss=2.0)
    return param, optimizer


def snapshot(param: torch.Tensor, optimizer: DWMGrad) -> list:
    state = optimizer.state[param]
    numbers = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    return [param.tolist(), *(state[k].tolist() for k in sorted(state)), numbers]


NO_LOSS = [
    ("2.0", TypeError, "loss must be a tensor or a number, got '2.0'"),
    (True, TypeError, "loss must be a tensor or a number, got True"),
    (1j, TypeError, "loss must be a tensor or a number"),
    (torch.tensor(1j), TypeError, "loss must be real, got a tensor of torch.complex64"),
    (torch.tensor(True), TypeError, "loss must be real, got a tensor of torch.bool"),
    (torch.ones(2), ValueError, r"loss must be a scalar, got a tensor of shape \(2,\)"),
    (torch.ones(0), ValueError, "loss must be a scalar"),
]


@pytest.mark.parametrize(("loss", "error", "message"), NO_LOSS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("route", ["observe", "argument", "closure"])
def test_what_is_no_loss_is_refused_and_nothing_changes(loss, error, message, route) -> None:
    param, optimizer = make()
    before = snapshot(param, optimizer)
    with pytest.raises(error, match=message):
        if route == "observe":
            optimizer.observe_loss(loss)
        elif route == "argument":
            optimizer.step(loss=loss)
        else:
            optimizer.step(lambda: loss)
    assert snapshot(param, optimizer) == before
    optimizer.step(loss=1.0)  # the refused one has left nothing behind
    assert optimizer.last_loss == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_a_loss_that_is_not_finite_skips_the_step(bad: float, as_tensor: bool) -> None:
    param, optimizer = make(missing_loss="error")
    before = snapshot(param, optimizer)
    with pytest.warns(UserWarning, match="not finite: this step is skipped"):
        optimizer.step(loss=torch.tensor(bad) if as_tensor else bad)
    assert snapshot(param, optimizer) == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it says so once
        optimizer.observe_loss(1.0)
        optimizer.observe_loss(bad)
        optimizer.step()
    assert snapshot(param, optimizer) == before
    optimizer.step(loss=1.0)
    assert (optimizer.last_loss, optimizer.window) == (1.0, 5)


def test_a_huge_python_number_is_not_finite() -> None:
    param, optimizer = make()
    before = snapshot(param, optimizer)
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step(loss=10**400)
    assert snapshot(param, optimizer) == before


def test_a_negative_loss_is_a_loss() -> None:
    _, optimizer = make()
    optimizer.step(loss=-3.0)
    assert (optimizer.last_loss, optimizer.window) == (-3.0, 5)


def test_the_graph_of_a_loss_is_let_go() -> None:
    param, optimizer = make()
    optimizer.observe_loss((param * 2).sum())
    assert not optimizer._feed.observation.loss.requires_grad
    optimizer.step()
    assert isinstance(optimizer.last_loss, float)


@pytest.mark.cuda
def test_a_loss_on_another_device_is_taken() -> None:
    _, optimizer = make()
    optimizer.observe_loss(torch.tensor(0.5, device="cuda"))
    optimizer.observe_loss(torch.tensor(0.25))
    optimizer.step()
    assert optimizer.last_loss == 0.75


def test_a_16_bit_loss_is_taken_with_a_warning() -> None:
    _, optimizer = make()
    with pytest.warns(UserWarning, match="float32"):
        optimizer.step(loss=torch.tensor(0.5, dtype=torch.bfloat16))
    assert optimizer.last_loss == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it says so once
        optimizer.step(loss=torch.tensor(0.25, dtype=torch.bfloat16))


def test_micro_batches_add_up_and_never_leak_into_the_next_step() -> None:
    _, optimizer = make()
    for parts in ([0.25, 0.5], [0.125], [1.0, 1.0, 1.0]):
        for part in parts:
            optimizer.observe_loss(torch.tensor(part))
        optimizer.step()
        assert optimizer.last_loss == sum(parts)


@pytest.mark.parametrize("second", ["argument", "closure"])
def test_two_routes_for_one_step_are_an_error(second: str) -> None:
    param, optimizer = make()
    before = snapshot(param, optimizer)
    optimizer.observe_loss(1.0)
    with pytest.raises(RuntimeError, match=r"through observe_loss\(\) already.*keep one"):
        if second == "argument":
            optimizer.step(loss=1.0)
        else:
            optimizer.step(lambda: 1.0)
    assert snapshot(param, optimizer) == before
    optimizer.step()
    assert optimizer.last_loss == 1.0


def test_a_closure_and_a_loss_at_once_are_an_error() -> None:
    _, optimizer = make()
    with pytest.raises(RuntimeError, match="both a closure and loss="):
        optimizer.step(lambda: 1.0, loss=1.0)


def test_a_closure_that_observes_and_returns_the_loss_is_an_error() -> None:
    param, optimizer = make()
    before = snapshot(param, optimizer)

    def closure() -> float:
        optimizer.observe_loss(1.0)
        return 1.0

    with pytest.raises(RuntimeError, match=r"step\(closure\) and, inside it, observe_loss"):
        optimizer.step(closure)
    assert snapshot(param, optimizer) == before
    optimizer.step(loss=0.5)


def test_a_closure_may_bring_no_loss() -> None:
    """As Lightning's does in manual optimization, and where a batch is skipped."""
    _, optimizer = make()
    with pytest.warns(UserWarning, match="got no loss"):
        assert optimizer.step(lambda: None) is None
    assert (optimizer.window, optimizer.param_groups[0]["steps"]) == (4, 2)
    optimizer.observe_loss(1.0)
    optimizer.step(lambda: None)
    assert (optimizer.last_loss, optimizer.window) == (1.0, 5)


def test_a_loss_in_the_place_of_the_closure_is_told_its_name() -> None:
    param, optimizer = make()
    before = snapshot(param, optimizer)
    for loss in (1.0, torch.tensor(1.0)):
        with pytest.raises(TypeError, match=r"got (float|Tensor): write step\(loss=loss\)"):
            optimizer.step(loss)
    with pytest.raises(TypeError, match="a closure as its first argument, got str$"):
        optimizer.step("loss")
    assert snapshot(param, optimizer) == before


def test_without_a_gradient_and_a_loss_a_step_does_nothing() -> None:
    param, optimizer = make(missing_loss="error")
    param.grad = None
    before = snapshot(param, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        optimizer.step(lambda: None)
    assert snapshot(param, optimizer) == before


def test_a_step_of_another_number_of_losses_is_not_compared() -> None:
    _, optimizer = make(loss_smoothing=0.5)
    seen = []
    for losses in ([1.0], [0.5, 0.5], [0.75, 0.75], [0.25], [0.125]):
        for loss in losses:
            optimizer.observe_loss(loss)
        optimizer.step()
        group = optimizer.param_groups[0]
        seen.append((group["window"], group["mean_loss"], group["micro_batches"]))
        assert optimizer.last_loss == sum(losses)
    # 2 losses: held; 2 again: worse than the first 2; 1: held; 1 again: better
    assert seen == [(5, 1.5, 1), (5, 1.5, 2), (4, 1.25, 2), (4, 1.25, 1), (5, 0.1875, 1)]
    assert (group["observations"], group["increases"]) == (6, 2)


@pytest.mark.parametrize("capturable", [False, True])
def test_the_short_last_step_of_an_epoch_is_passed_over(capturable: bool) -> None:
    settings = {"loss_smoothing": 0.5, "capturable": capturable}
    (_, full), (_, short) = make(**settings), make(**settings)
    for epoch in range(3):
        for losses in ([1.0, 1.5], [1.0, 0.5], [0.75]):
            for loss in losses:
                short.observe_loss(loss / (1 + epoch))
                if len(losses) == 2:
                    full.observe_loss(loss / (1 + epoch))
            short.step()
            if len(losses) == 2:
                full.step()
    short, full = (each.state_dict()["param_groups"][0] for each in (short, full))
    for name in ("window", "mean_loss", "loss_left", "increases", "mean_micro_batches"):
        assert short[name] == full[name], name
    assert (short["micro_batches"], short["observations"]) == (1, full["observations"] + 3)


@pytest.mark.parametrize("capturable", [False, True])
def test_a_number_of_micro_batches_may_never_come_back(capturable: bool) -> None:
    """As after a resume with another accumulation, where each epoch ends with a short step."""
    _, optimizer = make(capturable=capturable, loss_limit=1.0, limit_slope=1.0)
    seen = []
    for step, count in enumerate((4, 4, 4, *(3, 2) * 8)):
        for _ in range(count):
            optimizer.observe_loss((3.0 - 0.05 * step) / count)
        optimizer.step()
        group = optimizer.state_dict()["param_groups"][0]
        seen.append((optimizer.window, group["mean_micro_batches"], group["passed_over"]))
        if step == 10:
            means = [group[name] for name in ("mean_loss", "quarter_loss", "slow_loss")]
            assert means == [group["last_loss"]] * 3
    begins = [(4, 1, 1), (5, 4, 0), (6, 4, 0)]
    holds = [(6, 4, passed) for passed in range(1, 8)]
    goes_on = [(6, 2, 0), (6, 2, 1), (7, 2, 0), (7, 2, 1), (8, 2, 0), (8, 2, 1), (9, 2, 0)]
    assert seen[:17] == begins + holds + goes_on


def test_without_a_loss_the_window_holds_and_says_so_once() -> None:
    param, optimizer = make()
    with pytest.warns(UserWarning, match="no loss, so the window holds"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert (optimizer.window, optimizer.last_loss) == (4, 2.0)
    assert param.tolist() != [1.0] * 3


def test_without_a_loss_hold_is_silent_and_error_raises() -> None:
    _, optimizer = make(missing_loss="hold")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    param, optimizer = make(missing_loss="error")
    before = snapshot(param, optimizer)
    with pytest.raises(RuntimeError, match="got no loss"):
        optimizer.step()
    assert snapshot(param, optimizer) == before


def test_creating_state_with_lr_0_is_silent_and_moves_nothing() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = DWMGrad([param], lr=0.0, missing_loss="error")
    param.grad = torch.zeros(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure=None)
    assert (optimizer.window, optimizer.last_loss) == (5, None)
    assert set(optimizer.state[param]) == {"momentum_buffer", "square_avg", "zero_share"}
    assert torch.equal(param, torch.ones(3))


def test_one_observation_moves_the_window_once_for_every_group() -> None:
    """DeepSpeed steps group by group (ZeRO-1, 2) or by parts of a group (ZeRO-3)."""
    params = [torch.ones(2, requires_grad=True) for _ in range(4)]
    for param in params:
        param.grad = torch.ones(2)
    optimizer = DWMGrad([{"params": params[:2]}, {"params": params[2:]}], missing_loss="error")
    groups = optimizer.param_groups
    for loss, window in ((3.0, 4), (2.0, 5), (1.0, 6)):
        optimizer.observe_loss(loss)
        for group in groups:
            optimizer.param_groups = [group]
            optimizer.step()
        optimizer.param_groups = groups
        assert [group["window"] for group in groups] == [window, window]
    optimizer.observe_loss(0.5)
    for group in groups:
        group["params"] = []
    for index, param in enumerate(params):
        groups[index // 2]["params"] = [param]
        optimizer.step()
        groups[index // 2]["params"] = []
    assert [group["window"] for group in groups] == [7, 7]


def test_a_skipped_step_of_a_gradient_scaler_drops_its_loss() -> None:
    param, optimizer = make(missing_loss="error")
    before = snapshot(param, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(1))
    param.grad = torch.full((3,), float("inf"))
    optimizer.observe_loss(0.5)
    scaler.step(optimizer)
    scaler.update()
    assert snapshot(param, optimizer) == before
    param.grad = torch.ones(3) * scaler.get_scale()
    optimizer.observe_loss(1.5)
    scaler.step(optimizer)
    assert (optimizer.last_loss, optimizer.window) == (1.5, 5)


def test_a_closure_under_a_gradient_scaler_may_only_return_the_loss() -> None:
    param, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(closure) -> None:
        optimizer.zero_grad()
        scaler.scale((param * 2).sum()).backward()
        scaler.step(optimizer, closure)
        scaler.update()

    def with_backward() -> torch.Tensor:
        loss = (param * 2).sum()
        scaler.scale(loss).backward()
        return loss

    step(lambda: 1.25)
    assert optimizer.last_loss == 1.25
    before = snapshot(param, optimizer)
    with pytest.raises(RuntimeError, match="gradients are scaled"):
        step(with_backward)
    assert snapshot(param, optimizer) == before


def test_a_closure_that_fails_leaves_nothing_behind() -> None:
    """But for gradients that it made with Accelerate, with their loss."""
    param, optimizer = make()
    before = snapshot(param, optimizer)

    def closure() -> float:
        optimizer.observe_loss(9.0)
        raise KeyError("gone")

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert snapshot(param, optimizer) == before
    optimizer.step(lambda: 1.0)
    assert optimizer.last_loss == 1.0


def test_the_loss_of_a_refused_step_waits_for_it_and_for_no_other() -> None:
    _, optimizer = make()
    for retried in (True, False):
        optimizer.observe_loss(1.0)
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match="lr of parameter group 0"):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 1e-3
        if not retried:
            optimizer.observe_loss(0.5)
        optimizer.step()
        assert optimizer.last_loss == (1.0 if retried else 0.5)


def test_looking_at_an_optimizer_changes_nothing() -> None:
    _, optimizer = make()
    optimizer.observe_loss(1.0)
    dict(inspect.getmembers(optimizer))
    optimizer.observe_loss(1.0)
    optimizer.step()
    assert optimizer.last_loss == 2.0


def test_two_skipped_steps_in_a_row_leave_no_loss_for_a_third() -> None:
    param, optimizer = make(missing_loss="error")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(1))
    optimizer.observe_loss(9.0)
    for bad in (True, False):
        param.grad = torch.full((3,), float("inf") if bad else 1.0)
        if bad:
            scaler.step(optimizer)
            scaler.update()
    with pytest.raises(RuntimeError, match="got no loss"):
        scaler.step(optimizer)


def test_numpy_numbers_are_numbers() -> None:
    _, optimizer = make()
    optimizer.step(loss=np.float32(0.5))
    assert optimizer.last_loss == 0.5 and type(optimizer.last_loss) is float


def test_a_step_that_is_given_up_can_drop_its_loss() -> None:
    _, optimizer = make()
    optimizer.observe_loss(7.0)
    optimizer.discard_loss()
    optimizer.discard_loss()
    optimizer.step(loss=1.0)
    assert optimizer.last_loss == 1.0


def test_two_optimizers_share_nothing() -> None:
    (_, first), (_, second) = make(), make()
    first.observe_loss(1.0)
    second.observe_loss(3.0)
    first.step()
    second.step()
    assert (first.last_loss, second.last_loss) == (1.0, 3.0)
    assert (first.window, second.window) == (5, 3)


def test_a_refused_step_is_not_taken_for_a_gradient_scalers() -> None:
    param, optimizer = make(missing_loss="error")
    with pytest.raises(RuntimeError, match="got no loss"):
        optimizer.step()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.param_groups[0]["observations"] == 2


@pytest.mark.parametrize("change", ["insert", "pop"])
@pytest.mark.parametrize("arguments", [{}, {"preset": "capped"}, {"capturable": True}], ids=str)
def test_no_step_takes_the_loss_of_the_step_before(arguments: dict, change: str) -> None:
    """Also where the first parameter of the group is another one by then."""
    params = [torch.ones(2, requires_grad=True) for _ in range(3)]
    for param in params:
        param.grad = torch.ones(2)
    optimizer = DWMGrad(params[1:], missing_loss="error", **arguments)
    optimizer.step(loss=1.0)
    held = optimizer.param_groups[0]["params"]
    held.insert(0, params[0]) if change == "insert" else held.pop(0)
    with pytest.raises(RuntimeError, match="got no loss"):
        optimizer.step()
