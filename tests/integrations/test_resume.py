"""A run interrupted at any step and resumed is, bit by bit, the run that was never interrupted."""

from pathlib import Path

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from tiny import tiny_roberta
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

pytestmark = pytest.mark.usefixtures("registered")
SHORT_LAST = pytest.mark.skipif(
    transformers.__version__ < "5", reason="transformers 4.48 resumes this one wrongly"
)


def outcome(trainer: Trainer) -> dict:
    """Weights, optimizer state, window and logs of a finished run, without the times."""
    state = trainer.optimizer.state_dict()
    return {
        "params": [p.detach().clone() for p in trainer.model.parameters()],
        "buffers": [b for buffers in state["state"].values() for b in buffers.values()],
        "groups": state["param_groups"],
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


def assert_equal(one: dict, two: dict, since: int) -> None:
    for tensors in ("params", "buffers"):
        assert len(one[tensors]) == len(two[tensors])
        assert all(map(torch.equal, one[tensors], two[tensors]))
    assert one["groups"] == two["groups"]
    logs = [entry for entry in two["logs"] if entry["step"] > since]
    assert [entry for entry in one["logs"] if entry["step"] > since] == logs and logs


def whole_and_resumed(settings: dict, arguments, dataset, steps: list[int]) -> None:
    args = arguments(save_strategy="steps", save_steps=1, warmup_steps=2, **settings)
    trainer = Trainer(tiny_roberta(), args, train_dataset=dataset)
    trainer.train()
    whole = outcome(trainer)
    for step in steps:
        again = Trainer(tiny_roberta(), args, train_dataset=dataset)
        again.train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-{step}")
        assert_equal(whole, outcome(again), since=step)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
        pytest.param({"gradient_accumulation_steps": 3}, marks=SHORT_LAST),
        {"optim_args": "max_window=100", "bf16": True},
    ],
    ids=["plain", "accumulated", "short last accumulation", "bf16 autocast"],
)
def test_the_trainer_at_every_step_of_a_short_run(settings, arguments, dataset) -> None:
    whole_and_resumed({"max_steps": 6, **settings}, arguments, dataset, list(range(1, 6)))


def test_the_trainer_at_random_steps_of_a_longer_run(arguments, dataset) -> None:
    steps = (torch.randperm(118, generator=torch.Generator().manual_seed(2))[:4] + 1).tolist()
    settings = {"max_steps": 120, "optim_args": "max_window=30,window_signal=increase"}
    whole_and_resumed({**settings, "save_total_limit": None}, arguments, dataset, steps)


def bare_run(dataset, folder: Path, begin: int, end: int, saves: bool) -> tuple:
    """A bare loop with dropout, a schedule and two micro-batches a step."""
    import dwmgrad

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    plain = tiny_roberta()
    inner = dwmgrad.DWMGrad(plain.parameters(), lr=1e-3, missing_loss="error")
    model, optimizer = accelerator.prepare(plain, inner)
    schedule = LambdaLR(inner, lambda step: 1 / (1 + step))
    accelerator.register_for_checkpointing(schedule)
    if begin > 0:
        accelerator.load_state(str(folder / str(begin)))
    losses = []
    model.train()
    for step in range(begin, end):
        for part in (0, 1):
            with accelerator.accumulate(model):
                row = dataset[(2 * step + part) % len(dataset)]
                labels = torch.tensor([row["labels"]])
                loss = model(input_ids=row["input_ids"][None], labels=labels).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        schedule.step()
        losses.append((inner.last_loss, inner.window))
        if saves:
            accelerator.save_state(str(folder / str(step + 1)))
    buffers = [b for buffers in inner.state.values() for b in buffers.values()]
    return [p.detach() for p in plain.parameters()] + buffers, losses


def test_save_state_and_load_state_at_every_step(dataset, tmp_path: Path) -> None:
    whole, seen = bare_run(dataset, tmp_path, 0, 8, saves=True)
    for step in range(1, 8):
        resumed, rest = bare_run(dataset, tmp_path, step, 8, saves=False)
        assert all(map(torch.equal, whole, resumed))
        assert rest == seen[step:]
