"""What a bare Accelerate loop needs where the Trainer has it built in."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler
from transformers import TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from glue.errors import UsageError

HONOURED = frozenset(
    """
    output_dir overwrite_output_dir do_train do_eval do_predict eval_strategy eval_steps
    per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps learning_rate
    weight_decay adam_beta1 adam_beta2 adam_epsilon optim optim_args max_grad_norm num_train_epochs
    max_steps lr_scheduler_type lr_scheduler_kwargs warmup_ratio warmup_steps logging_strategy
    logging_steps logging_first_step save_strategy save_steps save_total_limit seed data_seed bf16
    fp16 use_cpu no_cuda ddp_backend local_rank resume_from_checkpoint group_by_length
    train_sampling_strategy dataloader_num_workers dataloader_pin_memory dataloader_drop_last
    disable_tqdm gradient_checkpointing activation_checkpointing full_determinism log_level
    """.split()
)
"""Every other name of TrainingArguments is refused when the user set it."""


def check_honoured(training: TrainingArguments, given: frozenset[str]) -> None:
    """Refuse what this loop would silently ignore.

    Raises:
        UsageError: names every argument that was set, differs from its default, and means nothing
            to a bare loop.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(training)}
    unable = [
        name
        for name in sorted((given & defaults.keys()) - HONOURED)
        if getattr(training, name) != defaults[name]
        and not (name == "report_to" and training.report_to in ([], ["none"], "none"))
    ]
    if training.save_strategy == "best":
        unable.append("save_strategy best")
    if training.lr_scheduler_type == "reduce_lr_on_plateau":  # it steps by metrics
        unable.append("lr_scheduler_type reduce_lr_on_plateau")
    if _sampling(training) == "batch_rebalance":
        unable.append("train_sampling_strategy batch_rebalance")
    if unable:
        raise UsageError(
            f"run_glue_no_trainer.py cannot honour --{', --'.join(unable)}: leave it out, or use "
            "run_glue.py (FSDP, DeepSpeed and compilation are chosen by `accelerate config`)"
        )


def train_sampler(data: Any, training: TrainingArguments, ranks: int) -> Sampler[int]:
    """The order that --group_by_length and --train_sampling_strategy ask for.

    Seed its `generator` before each epoch: the order is then the same on every rank and after every
    resume.
    """
    strategy, generator = _sampling(training), torch.Generator()
    if getattr(training, "group_by_length", False) or strategy == "group_by_length":
        size = training.per_device_train_batch_size * ranks
        lengths = [len(ids) for ids in data["input_ids"]]
        return LengthGroupedSampler(size, lengths=lengths, generator=generator)
    if strategy == "sequential":
        return SequentialSampler(data)
    return RandomSampler(data, generator=generator)


def _sampling(training: TrainingArguments) -> str:
    return str(getattr(training, "train_sampling_strategy", "random"))


def loader(
    data: Dataset, training: TrainingArguments, collate: Any, sampler: Sampler[int] | None = None
) -> DataLoader:
    """Batches for training (with a sampler) or for evaluation, in order.

    Its own generator keeps the workers' seeds from moving the model's dropout, so that a resumed
    run draws the same numbers as one that never stopped.
    """
    train = sampler is not None
    return DataLoader(
        data,
        batch_size=(
            training.per_device_train_batch_size if train else training.per_device_eval_batch_size
        ),
        sampler=sampler,
        collate_fn=collate,
        drop_last=train and training.dataloader_drop_last,
        num_workers=training.dataloader_num_workers,
        pin_memory=training.dataloader_pin_memory and torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(training.seed),
    )


@dataclass
class State(TrainerState):
    """The Trainer's state, with the losses that its logs are the means of."""

    epoch: float = 0.0
    loss_since_log: float = 0.0
    steps_since_log: int = 0
    loss_total: float = 0.0

    def plan(self, total: int, training: TrainingArguments) -> None:
        """Set the number of steps, and when to log, evaluate and save: below 1 a share of all."""
        self.max_steps = total
        for name in ("logging_steps", "eval_steps", "save_steps"):
            if steps := getattr(training, name):
                setattr(self, name, math.ceil(total * steps) if steps < 1 else int(steps))

    def log(self, **values: Any) -> dict[str, Any]:
        """Add an entry, with the epoch and the step."""
        entry = {**values, "epoch": round(self.epoch, 4), "step": self.global_step}
        self.log_history.append(entry)
        return entry
