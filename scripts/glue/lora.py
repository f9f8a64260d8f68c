"""LoRA: the adapter put on, counted, loaded, merged."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from torch import nn

from glue.arguments import LoraArguments
from glue.errors import INSTALL, UsageError, one_line
from glue.model import DAMAGED


def check_lora(arguments: LoraArguments, given: frozenset[str]) -> None:
    """Errors that need no model.

    Raises:
        UsageError: an option that was `given` has no effect.
    """
    names = {n for n in given & vars(arguments).keys() if getattr(arguments, n) is not False}
    if not arguments.enabled:
        for name in sorted(names - {"lora_r", "adapter_name_or_path"}):
            raise UsageError(f"--{name} needs LoRA: add --lora_r N (or --adapter_name_or_path)")
        return
    with one_line(ImportError, of=f"LoRA needs peft: {INSTALL.format('glue')}: "):
        import peft  # noqa: F401
    fixed = names - {"adapter_name_or_path", "merge_adapter", "loraplus_lr_ratio"}
    if arguments.adapter_name_or_path is not None and fixed:
        raise UsageError(
            "--adapter_name_or_path brings its own rank and the rest: leave out "
            f"--{', --'.join(sorted(fixed))}"
        )


def add_lora(model: nn.Module, arguments: LoraArguments) -> nn.Module:
    """`model` with a new or a loaded adapter; the classifier head is trained in full.

    Raises:
        UsageError: the adapter cannot be loaded, or a module does not exist.
    """
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    source, targets = arguments.adapter_name_or_path, arguments.lora_target_modules
    words = f"--adapter_name_or_path {source}" if source else f"--lora_r {arguments.lora_r}"
    words += f" --lora_target_modules {' '.join(targets)}" if targets else ""
    with one_line(*DAMAGED, re.error, of=f"{words}: "):
        if source is not None:
            return PeftModel.from_pretrained(model, source, is_trainable=True)
        expression = None  # or all-linear: no plain name
        if targets and len(targets) == 1 and not re.fullmatch(r"[\w.,]+", targets[0]):
            [expression] = targets
        _check_names(model, "lora_target_modules", None if expression else targets)
        _check_names(model, "lora_modules_to_save", save := arguments.lora_modules_to_save)
        init: Any = arguments.lora_init_weights
        whole = "|".join(map(re.escape, ("classifier", "score", *(save or []))))
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=arguments.lora_r or 0,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.lora_dropout,
            target_modules=expression or targets,
            exclude_modules=rf"(.*\.)?({whole})(\..*)?",  # older peft adapts them, too
            modules_to_save=save,
            init_lora_weights={"true": True, "false": False}.get(init, init),
            use_rslora=arguments.lora_use_rslora,
            use_dora=arguments.use_dora,
        )
        return get_peft_model(model, config)


def _check_names(model: nn.Module, option: str, names: list[str] | None) -> None:
    """peft passes over a name that no module has."""
    paths = [f".{path}" for path, _ in model.named_modules() if path]
    for name in names or []:
        if "," in name:
            raise UsageError(f"--{option} {name}: separate names by a space, not by a comma")
        if not any(path.endswith(f".{name}") for path in paths):
            last = {path.rpartition(".")[2] for path in paths}
            known = ", ".join(sorted(each for each in last if not each.isdigit()))
            raise UsageError(f"--{option} {name}: the model has no such module; it has {known}")


def save_merged(model: Any, tokenizer: Any, output_dir: Path) -> Path:
    """Write the model with its adapter merged in to `output_dir`/merged; `model` stays as it is."""
    folder = output_dir / "merged"
    merged = copy.deepcopy(model).merge_and_unload()
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
