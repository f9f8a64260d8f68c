"""A loss waits for its step exactly as long as its gradients do, whatever fails in between."""

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Parameter

from dwmgrad import DWMGrad

TRIES = 40  # in which a gradient would get the id of the one before


class Run:
    """Two parameters, which get the gradients that are asked for."""

    def __init__(self, size: int = 3) -> None:
        self.model = torch.nn.ParameterList([Parameter(torch.ones(size)) for _ in range(2)])
        self.inner = DWMGrad(self.model.parameters(), lr=1e-2, missing_loss="error")
        self.accelerator = Accelerator(cpu=True)
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.inner)

    def loss(self, value: float, slopes: tuple[float, float] = (1.0, 1.0)) -> Tensor:
        a, b = ((param - param.detach()).sum() for param in self.model)
        return value + slopes[0] * a + slopes[1] * b

    def backward(self, value: float, slopes: tuple[float, float] = (1.0, 1.0)) -> None:
        self.accelerator.backward(self.loss(value, slopes))

    def seen(self) -> tuple[float | None, int]:
        """The last loss, and from how many micro-batches it came."""
        return self.inner.last_loss, self.inner.param_groups[0]["micro_batches"]


def fail() -> None:
    raise KeyError("gone")


def test_a_closure_that_fails_after_its_backward_leaves_gradients_and_their_loss() -> None:
    run = Run()
    with pytest.raises(KeyError):
        run.optimizer.step(lambda: (run.backward(2.0), fail()))
    run.backward(1.0)
    run.optimizer.step()
    assert run.seen() == (3.0, 2)


def test_a_group_that_is_added_within_the_backward_pass_takes_no_loss_away() -> None:
    run = Run(2**17)  # each is looked at, as none is small
    late = Parameter(torch.zeros(2))
    hook = run.model[0].register_hook(lambda _: run.inner.add_param_group({"params": [late]}))
    run.backward(2.0)
    hook.remove()
    run.optimizer.step()
    assert run.seen() == (2.0, 1)


def test_a_closure_that_drops_gradients_and_fails_drops_their_loss() -> None:
    run = Run()
    run.backward(2.0)
    with pytest.raises(KeyError):
        run.optimizer.step(lambda: (run.inner.zero_grad(), fail()))
    run.backward(1.0)
    run.optimizer.step()
    assert run.seen() == (1.0, 1)


def test_what_is_differentiated_after_a_refused_step_adds_up_with_what_was_before() -> None:
    run = Run()
    run.backward(2.0)
    run.inner.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr of parameter group 0"):
        run.optimizer.step()
    run.inner.param_groups[0]["lr"] = 1e-2
    run.backward(1.0)
    run.optimizer.step()
    assert run.seen() == (3.0, 2)


def test_after_a_dropped_batch_another_route_is_open() -> None:
    run = Run()
    run.backward(2.0)
    run.model.zero_grad()
    run.inner.observe_loss(1.0)
    run.loss(1.0).backward()
    run.optimizer.step()
    assert run.seen() == (1.0, 1)


def drop_all(run: Run) -> None:
    run.model.zero_grad(set_to_none=False)


def drop_one_by_one(run: Run) -> None:
    run.model[1].grad = None
    run.model.zero_grad(set_to_none=False)


@pytest.mark.parametrize("slopes", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("drop", [drop_all, drop_one_by_one])
def test_zeroed_gradients_are_noticed_where_some_were_zero_before(
    drop: Callable[[Run], None], slopes: tuple[float, float]
) -> None:
    run = Run()
    run.backward(2.0, slopes)
    drop(run)
    run.backward(1.0)
    run.optimizer.step()
    assert run.seen() == (1.0, 1)


def test_a_gradient_is_not_known_by_its_address() -> None:
    """The next gradient is often made where the one before was."""
    for _ in range(TRIES):
        run = Run()
        run.backward(2.0)
        run.model.zero_grad()
        run.loss(1.0, (0.0, 0.0)).backward()  # which nobody sees
        with pytest.raises(RuntimeError, match="got no loss"):
            run.optimizer.step()


def test_a_closure_that_replaces_the_gradients_under_a_scaler_is_refused() -> None:
    for _ in range(TRIES):
        param = Parameter(torch.ones(3))
        optimizer = DWMGrad([param])
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

        def closure(param=param, optimizer=optimizer, scaler=scaler) -> Tensor:
            optimizer.zero_grad()
            for _ in range(2):
                loss = (param * 2).sum()
                scaler.scale(loss).backward()
            return loss

        closure()
        with pytest.raises(RuntimeError, match="gradients are scaled"):
            scaler.step(optimizer, closure)
