"""Numbers that no training can use: refused before anything is loaded."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from transformers import TrainingArguments, get_scheduler

from glue.arguments import DataArguments, LoraArguments, ReportArguments
from glue.errors import UsageError


class Range(NamedTuple):
    """What a number must be: at least or above `least`, and at most `most`; always finite."""

    least: float
    above: bool = False
    most: float = math.inf

    def has(self, value: float) -> bool:
        inside = value > self.least if self.above else value >= self.least
        return inside and value <= self.most and (isinstance(value, int) or math.isfinite(value))

    def __str__(self) -> str:
        text = f"{'above' if self.above else 'at least'} {self.least:g}"
        return text if self.most == math.inf else f"{text} and at most {self.most:g}"


_COUNT, _POSITIVE, _NOT_NEGATIVE = Range(1), Range(0, above=True), Range(0)
_SEED = Range(0, most=2**32 - 1)  # numpy's
_RANGES = {
    **dict.fromkeys(
        (
            *("max_train_samples", "max_eval_samples", "max_predict_samples", "max_seq_length"),
            *("check_ranks_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
            *("gradient_accumulation_steps", "eval_accumulation_steps"),
            "dataloader_prefetch_factor",
        ),
        _COUNT,
    ),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm"), _NOT_NEGATIVE),
    **dict.fromkeys(("warmup_steps", "dataloader_num_workers"), _NOT_NEGATIVE),
    "lora_alpha": _POSITIVE,
    **dict.fromkeys(("seed", "data_seed"), _SEED),
    "loraplus_lr_ratio": _COUNT,
}


def check_numbers(
    training: TrainingArguments, data: DataArguments, lora: LoraArguments, report: ReportArguments
) -> None:
    """Raise a UsageError that names the first argument which is out of its range."""
    values: dict[str, Any] = {**vars(training), **vars(data), **vars(lora), **vars(report)}
    for name, allowed in _RANGES.items():
        value = values.get(name)
        if value is not None and not allowed.has(value):
            raise UsageError(f"--{name} {value}: must be {allowed}")
    if training.max_steps < 1 and training.max_steps != -1:
        raise UsageError(f"--max_steps {training.max_steps}: must be at least 1 (-1: by epochs)")
    epochs = training.num_train_epochs
    if training.do_train and training.max_steps < 1 and not _POSITIVE.has(epochs):
        raise UsageError(f"--num_train_epochs {epochs}: must be above 0")
    if training.do_train:
        _check_schedule(training)


def check_warmup(ratio: float | None) -> None:
    """The same for --warmup_ratio, which not every transformers version keeps."""
    if ratio is not None and not 0 <= ratio < 1:
        raise UsageError(f"--warmup_ratio {ratio}: must be at least 0 and below 1")


def _check_schedule(training: TrainingArguments) -> None:
    kind, given = training.lr_scheduler_type, training.lr_scheduler_kwargs or {}
    options: Any = given  # text where it is no JSON, which TrainingArguments refuses
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameters, lr=training.learning_rate)
    try:
        get_scheduler(kind, optimizer, 1, 10, scheduler_specific_kwargs=dict(options))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--lr_scheduler_type {getattr(kind, 'value', kind)} --lr_scheduler_kwargs {given}: "
            f"{str(error).splitlines()[0]}"
        ) from error
