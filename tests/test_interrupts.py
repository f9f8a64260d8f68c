"""Ctrl-C and exhausted memory inside `step()` leave one window, and a checkpoint that loads."""

import copy
import io
import random
import signal
import sys
import time

import pytest
import torch
from torch.nn import Parameter

from dwmgrad import DWMGrad, kernels

TRIALS = 30


@pytest.fixture(autouse=True)
def _gradients_again():
    """An interrupt inside of `torch.no_grad`'s own end may leave gradients off, as torch has it."""
    yield
    torch.set_grad_enabled(True)


def make(size: int, **arguments) -> tuple[list[Parameter], DWMGrad]:
    params = [Parameter(torch.ones(size)) for _ in range(4)]
    groups = [{"params": params[:3], "weight_decay": 0.1}, {"params": params[3:]}]
    return params, DWMGrad(groups, lr=1e-3, **arguments)


def give_gradients(params: list[Parameter]) -> None:
    for param in params:
        param.grad = torch.ones_like(param)


def assert_loadable(optimizer: DWMGrad, size: int, **arguments) -> None:
    numbers = [
        {name: group[name] for name in ("window", "last_loss", "observations", "steps")}
        for group in optimizer.param_groups
    ]
    assert numbers[0] == numbers[1]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    make(size, **arguments)[1].load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an interval timer")
@pytest.mark.parametrize("preset", [None, "finetune"])
def test_30_of_30_interrupts_at_random_moments_leave_a_loadable_checkpoint(
    preset: str | None,
) -> None:
    size, interrupted = 400_000, 0
    params, optimizer = make(size, preset=preset)
    give_gradients(params)
    optimizer.step(loss=1.0)
    begin = time.perf_counter()
    optimizer.step(loss=0.9)
    duration = time.perf_counter() - begin
    old = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        moments = random.Random(0)
        for _ in range(TRIALS):
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.02, 1.0) * duration)
                optimizer.step(loss=0.8)
                time.sleep(2 * duration)
            except KeyboardInterrupt:
                interrupted += 1
            assert_loadable(optimizer, size, preset=preset)
            optimizer.step(loss=0.7)
            assert_loadable(optimizer, size, preset=preset)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupted == TRIALS


@pytest.mark.parametrize("preset", [None, "finetune"])
def test_an_interrupt_at_any_line_of_a_step_leaves_a_loadable_checkpoint(
    preset: str | None,
) -> None:
    """A tracer raises at one line after the other, so that no moment between two is left out."""
    lines = 0
    while True:
        params, optimizer = make(10, preset=preset)
        for loss in (1.0, 0.9):
            give_gradients(params)
            optimizer.step(loss=loss)
        left = lines

        def tracer(frame, event, _argument):
            nonlocal left
            if "dwmgrad" not in frame.f_code.co_filename:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
            return tracer

        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            optimizer.step(loss=0.8)
            done = True
        except KeyboardInterrupt:
            done = False
        finally:
            sys.settrace(before)
        assert_loadable(optimizer, 10, preset=preset)
        give_gradients(params)
        optimizer.step(loss=0.7)
        assert_loadable(optimizer, 10, preset=preset)
        if done:
            break
        lines += 7  # a prime: no loop hides a line for ever
    assert lines > 50


def test_memory_that_runs_out_while_state_is_made_leaves_no_trace(monkeypatch) -> None:
    params, optimizer = make(10)
    give_gradients(params)
    before = copy.deepcopy(optimizer.state_dict()["param_groups"])
    zeros_like, calls = torch.zeros_like, 0

    def failing(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 6:
            raise torch.OutOfMemoryError("out of memory")
        return zeros_like(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", failing)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step(loss=1.0)
    monkeypatch.undo()
    assert not optimizer.state and optimizer.state_dict()["param_groups"] == before
    optimizer.step(loss=1.0)
    assert len(optimizer.state) == 4


def test_a_kernel_that_cannot_be_loaded_fails_before_the_window_moves(monkeypatch) -> None:
    params, optimizer = make(10)
    give_gradients(params)
    optimizer.step(loss=1.0)

    def failing(*_):
        raise KeyboardInterrupt

    params[0].data = params[0].data.clone()  # so that the kernel is asked again
    monkeypatch.setattr(kernels.native, "accepts", failing)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(loss=0.5)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def test_groups_that_an_older_version_left_one_step_apart_are_repaired() -> None:
    params, optimizer = make(10)
    for loss in (1.0, 0.9):
        give_gradients(params)
        optimizer.step(loss=loss)
    earlier = copy.deepcopy(optimizer.state_dict()["param_groups"][1])
    optimizer.step(loss=0.8)
    apart = optimizer.state_dict()
    apart["param_groups"][1] = earlier
    _, loaded = make(10)
    loaded.load_state_dict(apart)
    assert [group["steps"] for group in loaded.param_groups] == [3, 3]
    assert [group["window"] for group in loaded.param_groups] == [optimizer.window] * 2
