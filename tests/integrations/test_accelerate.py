"""Bare Accelerate loops: prepare and backward are all a user writes, and the loss arrives."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dwmgrad import DWMGrad

BATCHES = torch.Generator().manual_seed(1)
DATA = torch.randn(10, 4, 6, generator=BATCHES)


def prepared(accelerator: Accelerator, **arguments):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 2)
    inner = DWMGrad(model.parameters(), lr=1e-2, missing_loss="error", **arguments)
    model, optimizer = accelerator.prepare(model, inner)
    return model, optimizer, inner


def loss_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) - 1).square().mean()


def test_prepare_and_backward_are_enough() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    for batch in DATA:
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        assert inner.last_loss == loss.item()
    torch.manual_seed(0)
    plain = torch.nn.Linear(6, 2)
    by_hand = DWMGrad(plain.parameters(), lr=1e-2)
    for batch in DATA:
        by_hand.zero_grad()
        loss = loss_of(plain, batch)
        loss.backward()
        by_hand.step(loss=loss)
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


def test_accumulate_gives_the_mean_of_each_effective_batch_the_short_last_one_too() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer, inner = prepared(accelerator)
    loader = accelerator.prepare(torch.utils.data.DataLoader(DATA, batch_size=None))
    pending, seen = [], []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            pending.append(loss.item())
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            assert inner.last_loss == pytest.approx(sum(pending) / len(pending), rel=1e-6)
            seen.append(len(pending))
            pending = []
    assert seen == [4, 4, 2]


def test_losses_divided_by_hand_add_up() -> None:
    """The style of run_glue_no_trainer.py: no accumulate(), sync_gradients always true."""
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    total = 0.0
    for index, batch in enumerate(DATA):
        loss = loss_of(model, batch) / 2
        total += loss.item()
        accelerator.backward(loss)
        if index % 2 == 1:
            optimizer.step()
            optimizer.zero_grad()
            assert inner.last_loss == pytest.approx(total, rel=1e-6)
            total = 0.0


def test_a_skipped_step_drops_its_loss() -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    model, optimizer, inner = prepared(accelerator)
    seen = []
    for index, batch in enumerate(DATA):
        before = [p.detach().clone() for p in model.parameters()]
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        if index in (2, 3):
            next(model.parameters()).grad[0] = float("inf")
        optimizer.step()
        optimizer.zero_grad()
        assert optimizer.step_was_skipped == (index in (2, 3))
        if optimizer.step_was_skipped:
            assert all(map(torch.equal, before, model.parameters()))
        else:
            assert inner.last_loss == loss.item()
        seen.append(inner.param_groups[0]["observations"])
    assert seen == [1, 2, 2, 2, 3, 4, 5, 6, 7, 8]


def test_a_closure_may_call_backward_of_accelerate() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, DATA[0])
        accelerator.backward(loss)
        return loss

    for step in range(3):
        optimizer.step(closure)
        assert inner.param_groups[0]["observations"] == step + 1


def test_feeding_by_hand_beside_accelerate_is_an_error() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    loss = loss_of(model, DATA[0])
    accelerator.backward(loss)
    with pytest.raises(RuntimeError, match=r"through accelerator.backward\(\) already"):
        inner.observe_loss(loss)


def test_losses_of_an_aborted_batch_go_with_free_memory() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    accelerator.backward(loss_of(model, DATA[0]))
    accelerator.free_memory()
    model, optimizer = accelerator.prepare(model, inner)
    loss = loss_of(model, DATA[1])
    accelerator.backward(loss)
    optimizer.step()
    assert inner.last_loss == loss.item()


@pytest.mark.parametrize("other", [DWMGrad, torch.optim.SGD])
def test_two_optimizers_of_one_accelerator_must_be_fed_by_hand(other) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    accelerator.prepare(other([torch.ones(2, requires_grad=True)]))
    loss = loss_of(model, DATA[0])
    with pytest.warns(UserWarning, match="2 optimizers.*call observe_loss"):
        accelerator.backward(loss)
    inner.observe_loss(loss)
    optimizer.step()
    assert inner.last_loss == loss.item()


def test_a_scheduler_may_be_prepared_before_its_optimizer() -> None:
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(6, 2)
    inner = DWMGrad(model.parameters(), missing_loss="error")
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.ConstantLR(inner))
    model, optimizer = accelerator.prepare(model, inner)
    accelerator.backward(loss_of(model, DATA[0]))
    optimizer.step()
    scheduler.step()
    assert inner.param_groups[0]["observations"] == 1


def test_an_optimizer_prepared_twice_is_one() -> None:
    accelerator = Accelerator(cpu=True)
    model, _, inner = prepared(accelerator)
    optimizer = accelerator.prepare(inner)
    loss = loss_of(model, DATA[0])
    accelerator.backward(loss)
    optimizer.step()
    assert inner.last_loss == loss.item()


@pytest.mark.parametrize("how", ["backward fails", "zero_grad"])
def test_the_loss_of_a_batch_that_is_given_up_goes_with_it(how: str) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    if how == "zero_grad":
        accelerator.backward(loss_of(model, DATA[0]))
    else:
        loss = loss_of(model, DATA[0])
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            accelerator.backward(loss)
    optimizer.zero_grad()
    loss = loss_of(model, DATA[1])
    accelerator.backward(loss)
    optimizer.step()
    assert inner.last_loss == loss.item()


def test_other_optimizers_are_left_alone() -> None:
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(6, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    before = [p.detach().clone() for p in model.parameters()]
    accelerator.backward(loss_of(model, DATA[0]))
    optimizer.step()
    assert not any(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("stop", range(1, 10, 4))
def test_save_state_and_load_state_go_on_bit_by_bit(stop: int, tmp_path) -> None:
    def run(begin: int, end: int, load: bool = False):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        model, optimizer, inner = prepared(accelerator)
        if load:
            accelerator.load_state(str(tmp_path))
        for batch in DATA[begin:end]:
            accelerator.backward(loss_of(model, batch))
            optimizer.step()
            optimizer.zero_grad()
        if end == stop:
            accelerator.save_state(str(tmp_path))
        return [p.detach() for p in model.parameters()], inner.state_dict()["param_groups"]

    whole = run(0, 10)
    run(0, stop)
    resumed = run(stop, 10, load=True)
    assert all(map(torch.equal, whole[0], resumed[0]))
    assert whole[1] == resumed[1]
