"""Ranks that do not step alike: uneven inputs, local steps, one-sided overflows, unlike set-ups.

They run, or every one of them is refused with words; none waits for ever.
"""

import contextlib
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch.distributed.algorithms.join import Join
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from dwmgrad import DWMGrad
from dwmgrad.distributed import assert_ranks_agree
from dwmgrad.progress import PROGRESS

pytestmark = pytest.mark.timeout(120)  # instead of a hang


def ddp_model() -> DistributedDataParallel:
    torch.manual_seed(0)
    return DistributedDataParallel(torch.nn.Linear(4, 1))


def loss_of(model: torch.nn.Module, rank: int, step: int) -> torch.Tensor:
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * rank + step))
    return mse_loss(model(rows), rows.sum(1, keepdim=True))


def numbers(optimizer: DWMGrad) -> dict[str, Any]:
    optimizer._read_device()
    return {name: optimizer.param_groups[0][name] for name in PROGRESS}


# ---- uneven inputs ----


def join_runs(rank: int) -> dict[str, Any]:
    """5 steps on rank 0 and 4 on rank 1, in each of the ways in which a Join can be made."""
    found = {}
    for name in ("with", "without", "with, on the device", "method", "scaled", "even after"):
        model = ddp_model()
        optimizer = DWMGrad(
            model.parameters(), lr=1e-2, missing_loss="error", capturable="device" in name
        )
        joinables = [model] if name in ("without", "even after") else [model, optimizer]
        join = model.join() if name == "method" else Join(joinables)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=name == "scaled")
        losses, windows = [], []
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with join:
                for step in range(5 - rank):
                    loss = loss_of(model, rank, step)
                    scaler.scale(loss).backward()
                    optimizer.observe_loss(loss)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    losses.append(loss.item())
                    windows.append(optimizer.window)
        if name == "even after":  # the Join is left, so ranks agree again
            optimizer.step(loss=loss_of(model, rank, 9))
            losses.append(optimizer.last_loss)
        params = [p.detach().clone() for p in model.parameters()]
        messages = [str(each.message) for each in told if "Join" in str(each.message)]
        found[name] = (losses, windows, numbers(optimizer), params, messages)
    return found


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> list[dict[str, Any]]:
    return run(join_runs, tmp_path_factory.mktemp("join"))


@pytest.mark.parametrize("name", ["with", "with, on the device", "scaled"])
def test_a_rank_without_inputs_moves_its_window_with_the_others(joined, name: str) -> None:
    (own, windows, *first), (others, other_windows, *second) = (rank[name] for rank in joined)
    assert len(own) == 5 and len(others) == 4
    assert first[0] == second[0] and first[0]["observations"] == 5
    assert all(map(torch.equal, first[1], second[1]))
    assert windows[:4] == other_windows
    assert first[0]["last_loss"] == pytest.approx(own[4], rel=1e-6)  # the mean over one rank
    assert first[2] == second[2] == []


@pytest.mark.parametrize("name", ["without", "method"])
def test_a_join_that_does_not_know_the_optimizer_holds_the_window_and_says_so(
    joined, name: str
) -> None:
    for rank, found in enumerate(joined):
        losses, windows, progress, params, messages = found[name]
        assert len(losses) == 5 - rank and set(windows) == {5}
        assert progress["observations"] == 0 and progress["steps"] == 5 - rank
        assert all(map(torch.equal, params, joined[0][name][3]))
        [message] = messages
        assert "Join([model, optimizer])" in message


def test_after_a_join_the_ranks_agree_again(joined) -> None:
    first, second = (rank["even after"] for rank in joined)
    assert first[0][-1] == second[0][-1]
    assert first[2]["observations"] == second[2]["observations"] == 1


def join_with_accumulation(rank: int) -> str:
    model = ddp_model()
    optimizer = DWMGrad(model.parameters())
    with pytest.raises(RuntimeError) as refused, Join([model, optimizer]):
        for step in range(2):
            with model.no_sync() if step == 0 else contextlib.nullcontext():
                loss = loss_of(model, rank, step) / 2
                loss.backward()
            optimizer.observe_loss(loss)
        optimizer.step()
    return str(refused.value)


def test_a_join_of_accumulated_steps_is_refused_on_every_rank(tmp_path: Path) -> None:
    for message in run(join_with_accumulation, tmp_path):
        assert "with gradient accumulation use Join([model])" in message


# ---- steps of one rank alone ----


def accelerated(rank: int, **arguments: Any) -> tuple:
    """An Accelerator of two ranks, with a model, its optimizer and the DWMGrad inside of that."""
    from accelerate import Accelerator  # seconds, which the other workers need not wait

    # how torchrun tells Accelerate of the ranks
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # of the group that there is
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    inner = DWMGrad(model.parameters(), lr=1e-2, missing_loss="error", **arguments)
    return accelerator, *accelerator.prepare(model, inner), inner


def local_sgd(rank: int) -> list:
    from accelerate.local_sgd import LocalSGD

    accelerator, model, optimizer, inner = accelerated(rank)
    losses, seen = [], []
    with LocalSGD(accelerator=accelerator, model=model, local_sgd_steps=4) as local:
        for step in range(8):
            loss = loss_of(model, rank, step)
            accelerator.backward(loss)
            if step % 4 == 1 and rank == 1:  # this rank gives a batch up, and makes no step
                model.zero_grad()
            else:
                optimizer.step()
                losses.append(loss.item())
                seen.append(inner.last_loss)
            optimizer.zero_grad()
            local.step()
    return [losses, seen, [p.detach() for p in model.parameters()]]


def test_local_steps_see_the_losses_of_their_rank(tmp_path: Path) -> None:
    first, second = run(local_sgd, tmp_path)
    for losses, seen, _ in (first, second):
        assert seen == losses
    assert (len(first[0]), len(second[0])) == (8, 6)
    assert all(map(torch.equal, first[2], second[2]))


def bare_local_steps(rank: int) -> list:
    """As many as each rank likes within `no_sync()`, then the mean of the parameters."""
    model = ddp_model()
    optimizer = DWMGrad(model.parameters(), lr=1e-2, missing_loss="error")
    losses, seen = [], []
    for first in (0, 5):
        with model.no_sync():
            for step in range(first, first + 2 + rank):
                optimizer.zero_grad()
                loss = loss_of(model, rank, step)
                loss.backward()
                if first:
                    optimizer.step(loss=loss)
                else:
                    optimizer.observe_loss(loss)
                    optimizer.step()
                losses.append(loss.item())
                seen.append(optimizer.last_loss)
        for param in model.parameters():
            dist.all_reduce(param.data)
            param.data /= 2
    optimizer.zero_grad()
    loss = loss_of(model, rank, 9)  # a step of all again
    loss.backward()
    optimizer.step(loss=loss)
    return [losses, seen, loss.item(), optimizer.last_loss]


def test_so_do_they_in_a_bare_loop(tmp_path: Path) -> None:
    first, second = run(bare_local_steps, tmp_path)
    for losses, seen, *_ in (first, second):
        assert seen == losses
    assert (len(first[0]), len(second[0])) == (4, 6)
    assert first[3] == second[3] == pytest.approx((first[2] + second[2]) / 2)


def averaged_by_hand(rank: int) -> list:
    """Backward passes within `no_sync()`, the mean of the gradients by hand, the step after it."""
    accelerator, model, optimizer, inner = accelerated(rank, preset="auto")
    losses, seen = [], []
    for step in range(4):
        with accelerator.no_sync(model):
            loss = loss_of(model, rank, step)
            accelerator.backward(loss)
        for param in model.parameters():
            dist.all_reduce(param.grad)
            param.grad /= 2
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seen.append(inner.last_loss)
    assert_ranks_agree(optimizer)
    return [losses, seen]


def test_ranks_that_average_their_gradients_by_hand_average_their_losses(tmp_path: Path) -> None:
    first, second = run(averaged_by_hand, tmp_path)
    means = [(one + other) / 2 for one, other in zip(first[0], second[0], strict=True)]
    assert first[1] == second[1] == pytest.approx(means)


def ranks_of_their_own(rank: int) -> list:
    group, _ = dist.new_subgroups(group_size=1)
    param = torch.ones(2, requires_grad=True)
    optimizer = DWMGrad([param], loss_group=group, momentum=0.5 + rank / 10)
    for _ in range(3 + rank):
        param.grad = torch.ones(2)
        optimizer.step(loss=1.0 + rank)
    return [optimizer.last_loss, optimizer.param_groups[0]["steps"]]


def test_ranks_with_groups_of_their_own_step_as_they_like(tmp_path: Path) -> None:
    assert run(ranks_of_their_own, tmp_path) == [[1.0, 3], [2.0, 4]]


def idle(rank: int) -> list:
    """Steps without a gradient: of rank 1, of both, of none."""
    param = torch.ones(2, requires_grad=True)
    optimizer = DWMGrad([param], missing_loss="hold")
    seen = []
    for step in range(3):
        param.grad = torch.ones(2) if step == 2 or (rank == 0 and step == 0) else None
        if param.grad is not None:
            optimizer.observe_loss(1.0)
        optimizer.step()
        seen.append((optimizer.param_groups[0]["steps"], optimizer.last_loss))
    return seen


def test_a_rank_without_gradients_takes_part(tmp_path: Path) -> None:
    assert run(idle, tmp_path) == [[(1, None), (1, None), (2, 1.0)]] * 2


# ---- numbers ----


def huge(rank: int) -> list:
    """Beyond float32 on one rank; then beyond float64 in the sum."""
    found = []
    for captures in (False, True):
        param = torch.ones(2, requires_grad=True)
        optimizer = DWMGrad([param], capturable=captures)
        for loss in (1e300 if rank else 1.0, 1.7e308, 1.0):
            param.grad = torch.ones(2)
            optimizer.step(loss=loss)
            found.append((optimizer.last_loss, optimizer.param_groups[0]["observations"]))
        found.append(param.detach())
    return found


@pytest.mark.filterwarnings("ignore:the loss is not finite")
def test_a_huge_loss_is_the_same_to_all(tmp_path: Path) -> None:
    first, second = run(huge, tmp_path)
    for found in (first, second):
        expected = [(5e299, 1), (5e299, 1), (1.0, 2)]
        assert [found[:3], found[4:7]] == [expected, expected]
    assert torch.equal(first[3], second[3]) and torch.equal(first[7], second[7])


def unlike_counts(rank: int) -> list:
    param = torch.ones(2, requires_grad=True)
    optimizer = DWMGrad([param])
    seen = []
    for parts in ((2, 2), (2, 1), (2, 1), (1, 1), (1, 1)):
        for _ in range(parts[rank]):
            optimizer.observe_loss(0.5)
        param.grad = torch.ones(2)
        optimizer.step()
        seen.append((optimizer.window, optimizer.param_groups[0]["micro_batches"]))
    return seen


def test_ranks_decide_alike_whether_steps_are_comparable(tmp_path: Path) -> None:
    first, second = run(unlike_counts, tmp_path)
    # the first loss, unlike, alike (a tie), unlike, alike (a tie)
    assert first == second == [(4, 2), (4, 1.5), (3, 1.5), (3, 1), (2, 1)]


# ---- a gradient scaler ----


def scaled(rank: int) -> list:
    found = []
    for captures in (False, True):
        torch.manual_seed(0)
        param = torch.ones(3, requires_grad=True)
        optimizer = DWMGrad([param], lr=1e-2, missing_loss="error", capturable=captures)
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=2)
        for step in range(10):
            optimizer.zero_grad()
            loss = (param * (1 + rank)).sum()
            scaler.scale(loss).backward()
            if step in (2, 3, 6) and rank == step % 2:
                param.grad[1] = torch.inf
            if step % 3 == 0:
                scaler.unscale_(optimizer)
            optimizer.observe_loss(loss)
            scaler.step(optimizer)
            scaler.update()
            found.append((scaler.get_scale(), numbers(optimizer)))
    return found


def test_what_a_scaler_skips_on_one_rank_it_skips_on_all(tmp_path: Path) -> None:
    first, second = run(scaled, tmp_path)
    assert first == second
    assert first[:10] == first[10:]  # on the device, too
    assert first[9][1]["observations"] == first[9][1]["steps"] == 7
    scales = [scale for scale, _ in first[:10]]
    assert scales[2:4] == [scales[1] / 2, scales[1] / 4]


def scaled_closure(rank: int) -> list:
    param = torch.ones(3, requires_grad=True)
    optimizer = DWMGrad([param], missing_loss="error")
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(4):
        optimizer.zero_grad()
        loss = (param * (1 + rank)).sum()
        scaler.scale(loss).backward()
        if step == rank:
            param.grad[1] = torch.inf
        scaler.step(optimizer, lambda loss=loss: loss)
        scaler.update()
    return [numbers(optimizer), scaler.get_scale()]


def test_so_it_is_with_a_closure_that_returns_the_loss(tmp_path: Path) -> None:
    first, second = run(scaled_closure, tmp_path)
    assert first == second
    assert first[0]["observations"] == 2 and first[1] == 4.0


def scaled_without_gradient(rank: int) -> str:
    param = torch.ones(3, requires_grad=True)
    optimizer = DWMGrad([param])
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    loss = scaler.scale(param.sum())
    if rank == 0:
        loss.backward()
    optimizer.observe_loss(1.0)
    with pytest.raises(RuntimeError) as refused:
        scaler.step(optimizer)
    return str(refused.value)


def test_a_scaler_on_a_rank_without_gradients_is_refused_on_every_rank(tmp_path: Path) -> None:
    for message in run(scaled_without_gradient, tmp_path):
        assert "a rank has no gradient" in message


# ---- unlike set-ups ----


def unlike(rank: int) -> dict[str, str]:
    """What every rank is told of one difference; with the parameters, which must not have moved."""
    from dwmgrad.kernels import native

    found = {}
    cases: dict[str, dict[str, Any]] = {
        "max_window": {"max_window": 10 + rank},
        "momentum": {"momentum": 0.9 - rank / 10},
        "state_dtype": {"state_dtype": [None, torch.bfloat16][rank]},
        "window": {"initial_window": 5},
        "kernel": {},
        "lr": {"lr": 0.1 + rank},
    }
    for name, arguments in cases.items():
        param = torch.ones(2, requires_grad=True)
        optimizer = DWMGrad([param], **arguments)
        param.grad = torch.ones(2)
        if name == "window":
            optimizer.param_groups[0]["window"] = 5 + rank
        if name == "kernel" and rank == 1:
            os.environ["DWMGRAD_NATIVE"] = "0"
            native.library.cache_clear()
        try:
            optimizer.step(loss=1.0)
            found[name] = "no error"
        except RuntimeError as error:
            assert param.tolist() == [1.0, 1.0]
            found[name] = str(error)
        if name == "kernel":
            os.environ.pop("DWMGRAD_NATIVE", None)
            native.library.cache_clear()
    return found


def test_ranks_that_are_set_up_unlike_are_told_what_differs(tmp_path: Path) -> None:
    first, second = run(unlike, tmp_path)
    assert first == second
    assert "max_window is 10 on rank 0 and 11 on rank 1" in first["max_window"]
    assert "momentum is 0.9 on rank 0 and 0.8 on rank 1" in first["momentum"]
    assert "state_dtype is None on rank 0 and bfloat16 on rank 1" in first["state_dtype"]
    assert "; window is 5" not in first["max_window"]
    assert "window is 5 on rank 0 and 6 on rank 1" in first["window"]
    assert (
        "the kernel is the compiled one on rank 0 and PyTorch's operators on rank 1"
        in (first["kernel"])
    )
    assert first["lr"] == "no error"  # schedules per rank are nobody's business


def checked_once(rank: int) -> list[int]:
    gathered = []
    all_gather = dist.all_gather

    def counting(*args: Any, **options: Any) -> Any:
        gathered.append(1)
        return all_gather(*args, **options)

    dist.all_gather = counting
    model = ddp_model()
    optimizer = DWMGrad(model.parameters())
    counts = []
    for step in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, rank, step)
        loss.backward()
        optimizer.step(loss=loss)
        if step == 1:
            optimizer.load_state_dict(optimizer.state_dict())
        counts.append(len(gathered))
    dist.all_gather = all_gather
    assert_ranks_agree(optimizer)
    return counts


def test_the_set_up_is_checked_at_the_first_step_alone(tmp_path: Path) -> None:
    assert run(checked_once, tmp_path) == [[1, 1, 1]] * 2


# ---- what fails ----


def failing(rank: int) -> str:
    def all_reduce(*args: Any, **options: Any) -> None:
        raise RuntimeError("Connection closed by peer")

    param = torch.ones(2, requires_grad=True)
    optimizer = DWMGrad([param])
    param.grad = torch.ones(2)
    original, dist.all_reduce = dist.all_reduce, all_reduce
    with pytest.raises(RuntimeError) as failed:
        optimizer.step(loss=1.0)
    dist.all_reduce = original
    assert param.tolist() == [1.0, 1.0]
    return str(failed.value)


def test_an_all_reduce_that_fails_says_what_to_look_for(tmp_path: Path) -> None:
    for message in run(failing, tmp_path):
        assert "Connection closed by peer" in message
        assert "Join([model, optimizer])" in message and "loss_group" in message
