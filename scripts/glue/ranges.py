"""Numbers that no training can use: refused before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from glue.arguments import DataArguments, LoraArguments, ReportArguments
from glue.errors import UsageError, one_line

_RANGES = (
    ("warmup_ratio lora_dropout", ("at least 0 and below 1", 0, 1)),
    (
        """
        max_train_samples max_eval_samples max_predict_samples max_seq_length check_ranks_steps
        per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
        eval_accumulation_steps dataloader_prefetch_factor loraplus_lr_ratio
        """,
        ("at least 1", 1, math.inf),
    ),
    (
        "learning_rate weight_decay max_grad_norm warmup_steps dataloader_num_workers",
        ("at least 0", 0, math.inf),
    ),
    ("lora_alpha", ("above 0", 1, math.inf)),
    ("seed data_seed", ("at least 0 and at most 2**32 - 1", 0, 2**32)),  # numpy's
)
"""Names; what each must be: in words, the least that it can be, and the first that is too much."""


def check_numbers(
    training: TrainingArguments, data: DataArguments, lora: LoraArguments, report: ReportArguments
) -> None:
    """Raise a UsageError that names the first argument which is out of its range."""
    values: dict[str, Any] = {**vars(training), **vars(data), **vars(lora), **vars(report)}
    for names, (words, least, end) in _RANGES:
        for name in names.split():
            value = values.get(name)
            if value is not None and not least <= value < end:
                raise UsageError(f"--{name} {value}: must be {words}")
    if training.max_steps < 1 and training.max_steps != -1:
        raise UsageError(f"--max_steps {training.max_steps}: must be at least 1 (-1: by epochs)")
    epochs = training.num_train_epochs
    if training.do_train and training.max_steps < 1 and not 0 < epochs < math.inf:
        raise UsageError(f"--num_train_epochs {epochs}: must be above 0")
    if training.do_train:
        kind, options = training.lr_scheduler_type, training.lr_scheduler_kwargs or {}
        given: Any = options  # text where it is no JSON
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=training.learning_rate)
        of = f"--lr_scheduler_type {getattr(kind, 'value', kind)} --lr_scheduler_kwargs {options}: "
        with one_line(TypeError, ValueError, of=of):
            get_scheduler(kind, optimizer, 1, 10, scheduler_specific_kwargs=dict(given))
