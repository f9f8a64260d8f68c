"""Bare Accelerate loops: prepare and backward are all a user writes, and the loss arrives."""

import copy
import warnings

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


def test_accumulate_gives_what_was_differentiated_in_the_short_last_step_too() -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer, inner = prepared(accelerator)
    loader = accelerator.prepare(torch.utils.data.DataLoader(DATA, batch_size=None))
    pending, seen, windows, losses = [], [], [], []
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = loss_of(model, batch)
                pending.append(loss.item())
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                # Accelerate divides by 4 where there are 2, too: so are the gradients divided
                assert inner.last_loss == pytest.approx(sum(pending) / 4, rel=1e-6)
                assert inner.param_groups[0]["micro_batches"] == len(pending)
                seen.append(len(pending))
                windows.append(inner.window)
                losses.append(inner.last_loss)
                pending = []
    assert seen == [4, 4, 2, 4, 4, 2]
    # the short step, half as long, is no improvement; the one after it compares with that before
    assert windows[2] == windows[1] and windows[5] == windows[4]
    assert windows[3] - windows[2] == (1 if losses[3] < losses[1] else -1)


def test_a_loss_per_token_is_right_in_the_short_last_step() -> None:
    """As Accelerate documents it: the sum over tokens times the steps over all tokens."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer, inner = prepared(accelerator)
    for begin, end in ((0, 4), (4, 8), (8, 10)):
        items, true = (end - begin) * DATA[0].numel(), 0.0
        for batch in DATA[begin:end]:
            total = (model(batch) - 1).square().sum()
            true += total.item() / items
            accelerator.backward(total * 4 / items)
        optimizer.step()
        optimizer.zero_grad()
        assert inner.last_loss == pytest.approx(true, rel=1e-6)


def test_a_second_backward_of_a_step_adds_up() -> None:
    for accumulation in (1, 2):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        model, optimizer, inner = prepared(accelerator)
        for batch in DATA[:3]:
            loss, penalty = loss_of(model, batch), 0.1 * model.weight.square().sum()
            accelerator.backward(loss)
            accelerator.backward(penalty)
            optimizer.step()
            optimizer.zero_grad()
            expected = (loss.item() + penalty.item()) / accumulation
            assert inner.last_loss == pytest.approx(expected, rel=1e-6)
        AcceleratorState._reset_state(reset_partial_state=True)


def test_where_a_state_is_loaded_losses_stay_with_their_gradients() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    expected = 0.0
    for place, batch in enumerate(DATA[:3]):
        loss = loss_of(model, batch)
        accelerator.backward(loss)
        expected += loss.item()
        if place == 0:
            model, optimizer = accelerator.prepare(model, inner)  # which loads, too
        if place == 1:
            inner.load_state_dict(copy.deepcopy(inner.state_dict()))
    optimizer.step()
    assert inner.last_loss == pytest.approx(expected, rel=1e-6)
    assert inner.param_groups[0]["micro_batches"] == 3
    accelerator.backward(loss_of(model, DATA[0]))
    inner.load_state_dict(copy.deepcopy(inner.state_dict()))
    optimizer.zero_grad()  # they go with them, too
    loss = loss_of(model, DATA[1])
    accelerator.backward(loss)
    optimizer.step()
    assert inner.last_loss == loss.item() and inner.param_groups[0]["micro_batches"] == 1


@pytest.mark.parametrize("more", [False, True], ids=["the same", "one more"])
@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
def test_after_a_refused_step_loading_changes_nothing(capturable: bool, more: bool) -> None:
    """What that step made of its loss and its clipping is void, with the state loaded or not."""
    found = []
    for loads in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        model, optimizer, inner = prepared(accelerator, preset="auto", capturable=capturable)
        for batch in DATA[:2]:
            accelerator.backward(loss_of(model, batch))
            optimizer.step()
            optimizer.zero_grad()
        accelerator.backward(loss_of(model, DATA[2]))
        inner.observe_clipping(8.0, 1.0)
        dense, model.weight.grad = model.weight.grad, model.weight.grad.to_sparse()
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
        model.weight.grad = dense
        if loads:
            inner.load_state_dict(copy.deepcopy(inner.state_dict()))
        if more:
            accelerator.backward(loss_of(model, DATA[3]))
        optimizer.step()
        group = inner.state_dict()["param_groups"][0]
        found.append(({**group, "params": None}, model.weight.detach().clone()))
    (before, weight), (after, same) = found
    assert before == after and before["steps"] == 3 and before["micro_batches"] == 1 + more
    assert torch.equal(weight, same) and (before["clipped_to"] < 1) == (not more)


def test_an_observed_loss_goes_where_a_state_is_loaded() -> None:
    _, _, inner = prepared(Accelerator(cpu=True))
    inner.observe_loss(9.0)
    inner.load_state_dict(copy.deepcopy(inner.state_dict()))
    inner.observe_loss(1.0)
    inner.step()
    assert inner.last_loss == 1.0


def test_what_the_caller_does_with_the_loss_later_does_not_count() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    static = torch.zeros(())
    for batch in DATA:
        loss = loss_of(model, batch)
        true = loss.item()
        accelerator.backward(loss)
        shown = loss.detach()
        shown *= 100  # in percent
        optimizer.step()
        optimizer.zero_grad()
        assert inner.last_loss == true
    inner.observe_loss(static.fill_(3.0))
    static.fill_(9.0)
    inner.step()
    assert inner.last_loss == 3.0


@pytest.mark.parametrize("scalar", [False, True])
def test_a_vector_is_differentiated_with_a_gradient(scalar: bool) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    losses = (model(DATA[0]) - 1).square().mean(1)
    weights = torch.rand(4)
    if scalar:
        losses, weights = losses.mean(), torch.tensor(0.5)
    accelerator.backward(losses, gradient=weights)
    optimizer.step()
    assert inner.last_loss == pytest.approx((losses * weights).sum().item(), rel=1e-6)


def test_a_vector_without_a_gradient_is_torchs_error_and_leaves_no_loss() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        accelerator.backward(model(DATA[0]))
    loss = loss_of(model, DATA[0])
    accelerator.backward(loss)
    optimizer.step()
    assert inner.last_loss == loss.item()


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
def test_each_of_several_optimizers_gets_the_losses_that_reached_its_parameters(other) -> None:
    """A generator and a discriminator, trained in turns."""
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    judge = torch.nn.Linear(2, 1)
    second = other(judge.parameters(), lr=1e-3)
    judge, wrapped = accelerator.prepare(judge, second)
    for batch in DATA:
        made = model(batch)
        wrapped.zero_grad()
        loss = (judge(made.detach()) - 1).square().mean()
        accelerator.backward(loss)
        wrapped.step()
        if other is DWMGrad:
            assert second.last_loss == loss.item()
        optimizer.zero_grad()
        mine = judge(made).square().mean()
        accelerator.backward(mine)
        optimizer.step()
        assert inner.last_loss == mine.item()
    assert inner.param_groups[0]["observations"] == len(DATA)


def test_the_loss_of_a_model_that_is_not_optimized_here_is_not_seen() -> None:
    """A probe with an optimizer of its own, which Accelerate does not know."""
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    probe = accelerator.prepare(torch.nn.Linear(6, 2))
    for index, batch in enumerate(DATA):
        loss = loss_of(model, batch)
        losses = [loss, 50.0 * loss_of(probe, batch)]
        for each in losses[:: 1 if index % 2 else -1]:
            accelerator.backward(each)
        optimizer.step()
        optimizer.zero_grad()
        assert inner.last_loss == loss.item()
    assert inner.param_groups[0]["observations"] == len(DATA)


def test_folds_with_one_accelerator_each_have_their_losses() -> None:
    accelerator = Accelerator(cpu=True)
    for _ in range(3):
        model, optimizer, inner = prepared(accelerator)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for batch in DATA:
                accelerator.backward(loss_of(model, batch))
                optimizer.step()
                optimizer.zero_grad()
        assert inner.param_groups[0]["observations"] == len(DATA)


def test_the_advice_for_a_missing_loss_runs_on_what_prepare_returned() -> None:
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(6, 2)
    model, optimizer = accelerator.prepare(model, DWMGrad(model.parameters()))
    loss_of(model, DATA[0]).backward()
    with pytest.warns(UserWarning, match=r"optimizer\.optimizer\.observe_loss\(loss\)"):
        optimizer.step()
    optimizer.optimizer.observe_loss(0.5)
    optimizer.step()
    assert optimizer.optimizer.last_loss == 0.5


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("how", ["model", "model, zeros", "params", "data"])
def test_no_gradient_left_no_loss_left(how, capturable, clips: bool, accumulated: int) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator, capturable=capturable)
    for index, batch in enumerate(DATA):
        bad = index in (0, 3, 4)
        losses = []
        for part in batch.chunk(accumulated):
            loss = loss_of(model, part * torch.nan if bad else part)
            losses.append(loss.item())
            accelerator.backward(loss)
        if clips:
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
        if bad:
            if how == "params":
                for param in model.parameters():
                    param.grad = None
            elif how == "data":
                for param in model.parameters():
                    param.grad.data.zero_()  # which torch does not count as a change
            else:
                model.zero_grad(set_to_none=how == "model")
            continue
        optimizer.step()
        optimizer.zero_grad()
        assert inner.last_loss == pytest.approx(sum(losses), rel=1e-6)
    assert inner.param_groups[0]["observations"] == len(DATA) - 3


def test_a_head_that_a_batch_leaves_alone_does_not_hide_the_drop() -> None:
    """Its gradient is zero before and after."""
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    body, unused = torch.nn.Linear(6, 2), torch.nn.Linear(6, 2)
    inner = DWMGrad([*body.parameters(), *unused.parameters()], missing_loss="error")
    body, unused, optimizer = accelerator.prepare(body, unused, inner)
    accelerator.backward(loss_of(body, DATA[0]) + loss_of(unused, DATA[0]))
    optimizer.step()
    for batch, is_dropped in zip(DATA[1:], (False, True, False), strict=False):
        body.zero_grad(set_to_none=False)
        unused.zero_grad(set_to_none=False)
        loss = loss_of(body, batch)
        accelerator.backward(loss)
        if is_dropped:
            body.zero_grad(set_to_none=False)
            continue
        optimizer.step()
        assert inner.last_loss == loss.item()
    assert inner.param_groups[0]["observations"] == 3


def test_a_step_after_the_gradients_were_dropped_does_nothing() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)  # with missing_loss="error"
    before = copy.deepcopy(inner.state_dict()), [p.detach().clone() for p in model.parameters()]
    accelerator.backward(loss_of(model, DATA[0]))
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert inner.state_dict() == before[0]
    assert all(map(torch.equal, model.parameters(), before[1]))


def test_gradients_that_are_zero_and_clipped_are_not_taken_for_dropped() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    accelerator.backward(0.0 * loss_of(model, DATA[0]))
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert inner.last_loss == 0.0 and inner.param_groups[0]["observations"] == 1


def test_a_backward_that_fails_takes_its_own_loss_alone() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator)
    first, third = loss_of(model, DATA[0]), loss_of(model, DATA[2])
    accelerator.backward(first)
    second = loss_of(model, DATA[1])
    second.register_hook(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        accelerator.backward(second)
    accelerator.backward(third)
    optimizer.step()
    assert inner.last_loss == pytest.approx(first.item() + third.item(), rel=1e-6)


def out_of_memory(grad: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("no memory left")


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


def test_a_method_of_the_host_takes_its_arguments_by_name() -> None:
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 1)
    assert accelerator.prepare_model(model=model) is model
    accelerator.clip_grad_norm_(parameters=model.parameters(), max_norm=1.0)


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


@pytest.mark.parametrize("generator", [False, True])
def test_each_optimizer_hears_of_its_own_clipping(generator: bool) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    halves = [torch.nn.Linear(6, 6), torch.nn.Linear(6, 2)]
    inner = [DWMGrad(half.parameters(), preset="auto") for half in halves]
    *halves, one, other = accelerator.prepare(*halves, *inner)
    accelerator.backward(loss_of(torch.nn.Sequential(*halves), DATA[0]))
    found = []
    for half, norm in zip(halves, (1e-3, 1e6), strict=True):
        params = half.parameters() if generator else list(half.parameters())
        found.append(accelerator.clip_grad_norm_(params, norm))
    for optimizer in (one, other):
        optimizer.step()
    clipped = [optimizer.param_groups[0]["clipped_to"] for optimizer in inner]
    assert clipped == pytest.approx([1e-3 / (float(found[0]) + 1e-6), 1.0])


def test_the_clipping_of_another_optimizers_parameters_is_not_ours() -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    halves = [torch.nn.Linear(6, 6), torch.nn.Linear(6, 2)]
    ours = DWMGrad(halves[0].parameters(), preset="auto")
    *halves, one, _ = accelerator.prepare(*halves, ours, torch.optim.AdamW(halves[1].parameters()))
    accelerator.backward(loss_of(torch.nn.Sequential(*halves), DATA[0]))
    accelerator.clip_grad_norm_(halves[1].parameters(), 1e-3)
    one.step()
    assert ours.param_groups[0]["clipped_to"] == 1.0


@pytest.mark.parametrize("broken", [0, 3])
@pytest.mark.parametrize("form", [{}, {"preset": "auto"}, {"preset": "auto", "capturable": True}])
def test_gradients_that_clipping_has_made_zero_keep_their_loss(broken: int, form: dict) -> None:
    """Finite gradients whose norm overflows: clipping multiplies them by 0, as no zero_grad()."""
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator, **form)
    numbers = []
    for step, batch in enumerate(DATA[:6]):
        if step == broken:
            before = copy.deepcopy(model.state_dict())
        loss = loss_of(model, batch) * (1e25 if step == broken else 1.0)
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), 0.01)
        assert norm.isinf() == (step == broken)
        optimizer.step()
        model.zero_grad()
        group = inner.state_dict()["param_groups"][0]
        numbers.append([group[name] for name in ("step_limit", "clipped_to")])
        assert group["last_loss"] == loss.item() and group["observations"] == step + 1
        if step == broken == 0:
            assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    if form:
        held = numbers[broken - 1] if broken else [0.0, 0.0]
        assert numbers[broken] == held and 0 < numbers[-1][1] < 0.1


def test_a_model_can_be_moved_by_swapping_its_tensors() -> None:
    """As torch moves DTensors: a weak reference to a gradient would forbid it."""
    accelerator = Accelerator(cpu=True)
    model, optimizer, _ = prepared(accelerator)
    for batch in DATA[:2]:
        optimizer.zero_grad()
        accelerator.backward(loss_of(model, batch))
        optimizer.step()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.bfloat16)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert next(model.parameters()).grad.dtype == torch.bfloat16


def test_a_batch_that_is_given_up_after_clipping_goes_with_its_loss() -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer, inner = prepared(accelerator, preset="auto")
    for scale in (1e25, 1.0):
        accelerator.backward(loss_of(model, DATA[0]) * scale)
        if accelerator.clip_grad_norm_(model.parameters(), 0.01).isinf():
            model.zero_grad()
            continue
        optimizer.step()
    group = inner.param_groups[0]
    assert group["observations"] == 1 and group["last_loss"] < 1e3
    assert 0 < group["clipped_to"] < 0.1 and group["step_limit"] > 0
