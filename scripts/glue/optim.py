"""Any `--optim` name: checked before the model loads, and built for a bare loop."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from dwmgrad import param_groups
from dwmgrad.integrations.optim_args import preset_of
from glue.errors import UsageError, one_line

_NEEDS_MODEL = ("galore", "apollo", "lomo", "layerwise")


def check_optimizer(training: TrainingArguments) -> None:
    """Build the optimizer once on a single number, so that a bad argument fails early.

    Raises:
        UsageError: what the optimizer says about `--optim_args` or its other arguments; or
            transformers does not pass them on to it.
    """
    if any(word in str(training.optim) for word in _NEEDS_MODEL):
        return
    name = getattr(training.optim, "value", training.optim)
    args = f" --optim_args {training.optim_args!r}" if training.optim_args else ""
    with one_line(ValueError, TypeError, ImportError, of=f"--optim {name}{args}: "):
        kind, options = Trainer.get_optimizer_cls_and_kwargs(training)
        if training.optim_args and preset_of(training.optim) is None:
            without = copy.copy(training)
            without.optim_args = None
            if Trainer.get_optimizer_cls_and_kwargs(without) == (kind, options):
                raise ValueError(
                    "they change nothing there; leave them out, or give an --optim that takes "
                    "them, as dwmgrad_finetune"
                )
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            number = nn.Parameter(torch.zeros(1))
            group = {"params": [number], "weight_decay": training.weight_decay}
            kind([group], **options)


def build_optimizer(
    model: Any, training: TrainingArguments, loraplus_lr_ratio: float | None
) -> torch.optim.Optimizer:
    """The optimizer that the Trainer would build, or LoRA+'s with that ratio.

    Raises:
        UsageError: an optimizer that only the Trainer can build.
    """
    kind, options = Trainer.get_optimizer_cls_and_kwargs(training, model)
    if not isinstance(kind, type) or {"params", "model", "optimizer_dict"} & options.keys():
        raise UsageError(
            f"--optim {training.optim}: only run_glue.py (the Trainer) can build it, without "
            "--loraplus_lr_ratio"
        )
    if loraplus_lr_ratio is None:
        return kind(param_groups(model, training.weight_decay), **options)
    from peft.optimizers import create_loraplus_optimizer

    options |= {"loraplus_weight_decay": training.weight_decay}
    return create_loraplus_optimizer(model, kind, loraplus_lr_ratio=loraplus_lr_ratio, **options)
