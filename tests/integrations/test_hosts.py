"""Other set-ups: a compiled model, recomputed activations, a search for the batch size, ranks."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from ranks import run
from tiny import tiny_roberta
from torch._dynamo.utils import counters
from transformers import Trainer, TrainerCallback

from dwmgrad import DWMGrad
from dwmgrad.integrations.accelerate import innermost

ROUNDING = 1e-6
"""Of losses and parameters; all of these runs were bit-equal where they were measured."""


class Seen(TrainerCallback):
    """The window and the loss of every step."""

    def __init__(self) -> None:
        self.windows: list[int] = []
        self.losses: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        torch.manual_seed(args.seed)  # an aborted start has drawn its dropout

    def on_step_end(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.windows.append(innermost(optimizer).window)
        self.losses.append(innermost(optimizer).last_loss)


def train(model, dataset, args) -> tuple[Seen, list[torch.Tensor]]:
    seen = Seen()
    trainer = Trainer(model, args, train_dataset=dataset, callbacks=[seen])
    trainer.train()
    assert len(set(seen.losses)) == args.max_steps
    assert innermost(trainer.optimizer).param_groups[0]["observations"] == args.max_steps
    return seen, [p.detach() for p in model.parameters()]


def assert_same_run(found, expected) -> None:
    assert found[0].windows == expected[0].windows
    assert found[0].losses == pytest.approx(expected[0].losses, rel=0, abs=ROUNDING)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert (ours - theirs).abs().max() < ROUNDING


@pytest.fixture
def compiled_graphs():
    """How many graphs were compiled in this test."""
    torch._dynamo.reset()
    counters.clear()
    with mock.patch.dict(os.environ):  # where TrainingArguments leave the name of the backend
        yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_in_the_trainer(dataset, arguments, compiled_graphs, backend: str) -> None:
    plain = train(tiny_roberta(), dataset, arguments())
    assert compiled_graphs() == 0
    args = arguments(torch_compile=True, torch_compile_backend=backend)
    compiled = train(tiny_roberta(), dataset, args)
    assert compiled_graphs() > 0
    assert_same_run(compiled, plain)


def bare_loop(compiled: str = "") -> tuple[list, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = DWMGrad(model.parameters(), lr=1e-2, missing_loss="error")

    def train_step(rows: torch.Tensor) -> None:
        loss = (model(rows) - 1).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        optimizer.zero_grad()

    if compiled == "the model":
        model = torch.compile(model, backend="aot_eager")
    elif compiled == "optimizer.step":
        optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
    elif compiled == "the whole step":
        train_step = torch.compile(train_step, backend="aot_eager")
    seen = []
    for step in range(20):
        train_step(torch.randn(4, 6, generator=torch.Generator().manual_seed(step)))
        seen.append((optimizer.window, optimizer.last_loss))
    return seen, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("what", ["the model", "optimizer.step", "the whole step"])
def test_compiled_parts_of_a_bare_loop(compiled_graphs, what: str) -> None:
    plain, compiled = bare_loop(), bare_loop(compiled=what)
    assert plain[0] == compiled[0]
    assert all(map(torch.equal, plain[1], compiled[1]))


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations(dataset, arguments, reentrant: bool) -> None:
    def counting(calls: list) -> torch.nn.Module:
        model = tiny_roberta()
        query = model.roberta.encoder.layer[0].attention.self.query
        query.register_forward_pre_hook(lambda *_: calls.append(None))
        return model

    once: list = []
    twice: list = []
    plain = train(counting(once), dataset, arguments())
    settings = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    args = arguments(gradient_checkpointing=True, **settings)
    recomputed = train(counting(twice), dataset, args)
    assert len(twice) == 2 * len(once)
    assert_same_run(recomputed, plain)


@pytest.mark.usefixtures("registered")
def test_a_search_for_the_batch_size_leaves_no_loss_behind(dataset, arguments) -> None:
    """The memory runs out in the second half of the first step, whose first half brought a loss."""
    settings = {"gradient_accumulation_steps": 2, "max_steps": 5}
    small = train(tiny_roberta(), dataset, arguments(per_device_train_batch_size=2, **settings))

    model = tiny_roberta()
    forward = model.forward
    too_large = {
        4: torch.OutOfMemoryError("CUDA out of memory."),
        3: RuntimeError("CUDA out of memory."),  # a size that older versions do not try
    }
    tried: list[int] = []

    def with_little_memory(input_ids: torch.Tensor, **rest: torch.Tensor) -> Any:
        size = len(input_ids)
        tried.append(size)
        if size in too_large and tried.count(size) == 2:
            raise too_large[size]
        return forward(input_ids=input_ids, **rest)

    model.forward = with_little_memory
    args = arguments(per_device_train_batch_size=4, auto_find_batch_size=True, **settings)
    found = train(model, dataset, args)
    assert tried[:2] == [4, 4] and tried[-10:] == [2] * 10
    assert_same_run(found, small)


def accumulate(rank: int) -> dict[str, Any]:
    """Two epochs of 10 batches a rank, 4 to a step: 3 steps an epoch, the last one short."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 2)
    inner = DWMGrad(model.parameters(), lr=1e-2, missing_loss="error")
    data = torch.randn(80, 6, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, inner, loader)
    all_reduce = dist.all_reduce
    reduced: list[int] = []

    def counting(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        reduced.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **options)

    dist.all_reduce = counting
    own: list[list[float]] = [[]]
    seen = []
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                loss = (model(batch) - 1).square().mean()
                own[-1].append(loss.item())
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                seen.append((inner.window, inner.last_loss))
                own.append([])
    params = [p.detach() for p in model.parameters()]
    return {"own": own[:-1], "seen": seen, "reduced": reduced, "params": params}


def test_accumulate_on_two_ranks_gives_what_was_differentiated(tmp_path: Path) -> None:
    first, second = run(accumulate, tmp_path)
    assert [len(losses) for losses in first["own"]] == [4, 4, 2] * 2
    for losses, others, (_, seen) in zip(first["own"], second["own"], first["seen"], strict=True):
        assert losses != others
        # Accelerate divides by 4, also the 2 losses of the short last step; the mean over 2 ranks
        assert seen == pytest.approx(sum(losses + others) / 4 / 2, rel=1e-6)
    assert first["seen"] == second["seen"]
    assert first["reduced"] == second["reduced"] == [48] * 6
    assert all(map(torch.equal, first["params"], second["params"]))
