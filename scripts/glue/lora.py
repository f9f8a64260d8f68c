"""LoRA: the adapter put on, counted, loaded, merged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from glue.arguments import LoraArguments
from glue.errors import INSTALL, UsageError


def check_lora(arguments: LoraArguments, given: frozenset[str] = frozenset()) -> None:
    """Errors that need no model.

    Raises:
        UsageError: a value is out of range, or an option needs LoRA and LoRA is off.
    """
    if not arguments.enabled:
        wants = {"lora_alpha", "lora_dropout", "lora_target_modules", "use_dora", "merge_adapter"}
        for name in sorted(wants & given):
            if getattr(arguments, name) is not False:
                raise UsageError(f"--{name} needs LoRA: add --lora_r N (or --adapter_name_or_path)")
        return
    try:
        import peft  # noqa: F401
    except ImportError:
        raise UsageError(f"LoRA needs peft: {INSTALL.format('glue')}") from None
    if arguments.adapter_name_or_path is not None:
        if arguments.lora_r is not None or arguments.use_dora:
            raise UsageError(
                "--adapter_name_or_path brings its own rank: leave out --lora_r and --use_dora"
            )
        return
    if arguments.lora_r is not None and arguments.lora_r < 1:
        raise UsageError(f"--lora_r {arguments.lora_r}: must be at least 1")
    if not 0 <= arguments.lora_dropout < 1:
        raise UsageError(f"--lora_dropout {arguments.lora_dropout}: must be in [0, 1)")


def add_lora(model: nn.Module, arguments: LoraArguments) -> nn.Module:
    """`model` with a new or a loaded adapter; the classifier head is trained in full.

    Raises:
        UsageError: the adapter cannot be loaded, or the target modules do not exist.
    """
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    try:
        if arguments.adapter_name_or_path is not None:
            return PeftModel.from_pretrained(
                model, arguments.adapter_name_or_path, is_trainable=True
            )
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=arguments.lora_r or 0,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            target_modules=arguments.lora_target_modules,
            use_dora=arguments.use_dora,
        )
        return get_peft_model(model, config)
    except (OSError, ValueError, RuntimeError) as error:
        name = "adapter_name_or_path" if arguments.adapter_name_or_path else "lora_target_modules"
        reason = str(error).splitlines()[0]
        raise UsageError(f"--{name} {getattr(arguments, name)}: {reason}") from error


def print_trainable(model: nn.Module) -> None:
    """One line: how many parameters are trained, of how many."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    every = sum(size for size, _ in sizes)  # ZeRO-3 leaves parameters of size 0 behind
    trained = sum(size for size, trains in sizes if trains)
    print(f"Trainable parameters: {trained:,} of {every:,} ({trained / every:.2%})")


def save_merged(model: Any, tokenizer: Any, output_dir: Path) -> Path:
    """Write the model with its adapter merged in to `output_dir`/merged; `model` stays as it is."""
    folder = output_dir / "merged"
    merged = copy.deepcopy(model).merge_and_unload()
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
