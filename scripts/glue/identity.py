"""What makes a run another one: what decides which weights come out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset

from glue.parsing import Arguments
from glue.tasks import Task

_DECIDES = """
    optim optim_args optim_target_modules learning_rate weight_decay adam_beta1 adam_beta2
    adam_epsilon max_grad_norm lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio
    num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps
    dataloader_drop_last group_by_length train_sampling_strategy label_smoothing_factor
    neftune_noise_alpha seed data_seed world_size load_best_model_at_end metric_for_best_model
    greater_is_better
""".split()
"""Of TrainingArguments: what decides which weights come out. Not: what is logged, saved, evaluated
and where; how gradients are computed (checkpointing, compilation, sharding)."""


def identity(args: Arguments, script: str, task: Task) -> dict[str, Any]:
    """What must be equal for a run to go on from another's checkpoint by itself.

    Folders of this machine count by what they hold: a job may be given copies in another place.
    The examples themselves are added by `prepare`, once they are tokenized.
    """
    training, model, data = args.training, args.model, args.data
    precision = next((name for name in ("bf16", "fp16") if getattr(training, name)), None)
    record = {
        "script": script,
        "task_name": task.name,
        "use_sample": data.use_sample,
        "data_dir": "given" if data.data_dir else None,
        "max_train_samples": data.max_train_samples,
        "max_seq_length": data.max_seq_length,
        "pad_to_max_length": data.pad_to_max_length,
        "model_name_or_path": _source(model.model_name_or_path, model.model_revision),
        "config_name": _source(model.config_name, model.model_revision),
        "mixed_precision": precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
    }
    if args.lora.enabled:
        record |= {k: v for k, v in vars(args.lora).items() if k != "merge_adapter"}
        record["adapter_name_or_path"] = _source(args.lora.adapter_name_or_path, None)
    else:
        record |= {"lora_r": None, "adapter_name_or_path": None}
    values = {name: getattr(training, name) for name in _DECIDES if hasattr(training, name)}
    record |= {name: getattr(value, "value", value) for name, value in values.items()}
    return json.loads(json.dumps(record, default=str))


def _source(name: str | None, revision: str | None) -> str | None:
    """A model's name on the hub, or a short digest of what its folder or file holds."""
    if name is None or not os.path.exists(name):
        return f"{name} ({revision})" if name and revision not in (None, "main") else name
    path = Path(name)
    kinds = ("config.json", "adapter_config.json", "*.safetensors", "*.bin", "*.index.json", "*.py")
    files = {each for kind in kinds for each in path.glob(kind)} if path.is_dir() else {path}
    digest = hashlib.sha256()
    for file in sorted(files - {path / "training_args.bin"}):
        with contextlib.suppress(OSError), file.open("rb") as content:
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode() + content.read(2**20))
            content.seek(max(0, size - 2**20))  # weights differ at both ends; all takes too long
            digest.update(content.read(2**20))
    return f"{path.resolve().name} (content {digest.hexdigest()[:12]})"


def fingerprint(data: Dataset) -> str:
    """The number of examples and a short digest of their tokens and labels."""
    digest = hashlib.sha256()
    for name in ("input_ids", "labels"):
        for chunk in data.with_format("arrow")[:][name].chunks:
            lists = hasattr(chunk, "value_lengths")
            for part in (chunk.value_lengths(), chunk.flatten()) if lists else (chunk,):
                digest.update(part.to_numpy(zero_copy_only=False).tobytes())
    return f"{len(data):,} examples (content {digest.hexdigest()[:12]})"
