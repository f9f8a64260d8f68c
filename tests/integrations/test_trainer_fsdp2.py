"""FSDP2 set up by the Trainer and Accelerate, on two gloo processes: equal to DDP, exact resume."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from ranks import run
from tiny import tiny_roberta
from transformers import Trainer, TrainerCallback, TrainingArguments

import dwmgrad
from dwmgrad import DWMGrad
from dwmgrad.distributed import assert_ranks_agree
from dwmgrad.integrations.accelerate import innermost

if "fsdp_version" not in FullyShardedDataParallelPlugin.__dataclass_fields__:
    pytest.skip("this accelerate has no FSDP2", allow_module_level=True)
peft = pytest.importorskip("peft")

STEPS, STOP = 9, 4
ROUNDING = 1e-6
"""Of losses and parameters; 1.2e-7 was measured."""
FORMATS = ("FULL_STATE_DICT", "SHARDED_STATE_DICT")
LAYER = "RobertaLayer"  # what else RoBERTa would wrap, its embeddings, Accelerate wraps itself


def roberta(lora: bool) -> torch.nn.Module:
    model = tiny_roberta()
    if not lora:
        return model
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    return peft.get_peft_model(model, config)


def batches() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(5, 40, (40, 8), generator=torch.Generator().manual_seed(1))
    return tokens, (tokens[:, 0] > 20).long()


class Seen(TrainerCallback):
    """The window and the loss of every step."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float | None]] = []

    def on_step_end(self, args, state, control, optimizer=None, **kwargs) -> None:
        optimizer = innermost(optimizer)
        self.steps.append((optimizer.window, optimizer.last_loss))


def result(model: torch.nn.Module, optimizer: Any, seen: Seen) -> dict[str, Any]:
    assert_ranks_agree(optimizer)
    sharded = [hasattr(p, "full_tensor") for p in model.parameters()]
    whole = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters())
    params = [p.detach().clone() for p in whole]
    return {"seen": seen.steps, "params": params, "sharded": set(sharded)}


def trainer(folder: Path, format: str | None, resume: bool, lora: bool = False) -> dict[str, Any]:
    config = {"version": 2, "state_dict_type": format, "transformer_layer_cls_to_wrap": [LAYER]}
    settings = {} if format is None else {"fsdp": "full_shard auto_wrap", "fsdp_config": config}
    args = TrainingArguments(
        str(folder),
        optim="dwmgrad",
        learning_rate=1e-3,
        per_device_train_batch_size=2,
        max_steps=STEPS,
        save_steps=STOP,
        report_to="none",
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
        **settings,
    )
    dataset = [{"input_ids": row, "labels": label} for row, label in zip(*batches(), strict=True)]
    seen = Seen()
    trainer = Trainer(roberta(lora), args, train_dataset=dataset, callbacks=[seen])
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STOP}") if resume else None)
    return result(trainer.model, trainer.optimizer, seen)


def loop(folder: Path, format: str | None, resume: bool) -> dict[str, Any]:
    """A bare loop with `accumulate()`, `save_state()` and `load_state()`."""
    plugin = format and FullyShardedDataParallelPlugin(
        fsdp_version=2,
        state_dict_type=format,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=[LAYER],
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, gradient_accumulation_steps=2)
    model = roberta(lora=False)
    optimizer = DWMGrad(model.parameters(), lr=1e-3, missing_loss="error")
    model, optimizer = accelerator.prepare(model, optimizer)
    if resume:
        accelerator.load_state(str(folder))
    tokens, labels = (all.chunk(20) for all in batches())
    seen = Seen()
    for step in range(STOP if resume else 0, STEPS):
        for half in range(2):
            place = 4 * step + 2 * half + accelerator.process_index
            with accelerator.accumulate(model):
                loss = model(input_ids=tokens[place % 20], labels=labels[place % 20]).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        seen.on_step_end(None, None, None, optimizer=optimizer)
        if step == STOP - 1 and format:
            accelerator.save_state(str(folder))
    return result(model, optimizer, seen)


HOSTS = {"trainer": trainer, "trainer, lora": partial(trainer, lora=True), "loop": loop}


def all_runs(rank: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Every host under DDP; then, in each format, from begin to end and from the checkpoint."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dwmgrad.register()
    found: dict[str, dict[str, Any]] = {name: {} for name in HOSTS}
    for name, host in HOSTS.items():
        forget_accelerate()
        found[name]["ddp"] = host(folder / name, None, resume=False)
    # Accelerate takes FSDP for GPUs alone: give it that name, and the CPU as its device.
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    for name, host in HOSTS.items():
        for format in FORMATS:
            for resume in (False, True):
                forget_accelerate()
                found[name][format, resume] = host(folder / name / format, format, resume)
    return found


def forget_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("runs")
    return run(partial(all_runs, folder=folder), folder)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("host", HOSTS)
def test_fsdp2_equals_ddp_and_goes_on_bit_by_bit(ranks, host: str, format: str) -> None:
    for rank in ranks:
        ddp, whole, resumed = (rank[host][key] for key in ("ddp", (format, False), (format, True)))
        assert whole["sharded"] == {True} and ddp["sharded"] == {False}
        for (window, loss), (ours, theirs) in zip(ddp["seen"], whole["seen"], strict=True):
            assert window == ours and abs(loss - theirs) < ROUNDING
        far = [(a - b).abs().max() for a, b in zip(ddp["params"], whole["params"], strict=True)]
        assert max(far) < ROUNDING
        assert resumed["seen"] == whole["seen"][STOP:]
        assert all(map(torch.equal, whole["params"], resumed["params"]))
