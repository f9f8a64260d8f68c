"""Text to token numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from glue.arguments import DataArguments
from glue.errors import UsageError
from glue.tasks import Task

logger = logging.getLogger(__name__)


def tokenize(
    splits: Mapping[str, Dataset],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    arguments: DataArguments,
    label_order: tuple[int, ...] | None = None,
) -> dict[str, Dataset]:
    """Every split as `input_ids`, `attention_mask`, `labels`, cut to `max_seq_length` tokens.

    `label_order[i]` is the model's number of the task's class i, where they differ.
    """
    length = arguments.max_seq_length
    if length < 1:
        raise UsageError(f"--max_seq_length {length}: must be at least 1")
    if length > tokenizer.model_max_length:
        logger.warning(
            "--max_seq_length %d is more than the model's %d; using that",
            length,
            tokenizer.model_max_length,
        )
        length = tokenizer.model_max_length

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        result = tokenizer(
            *(batch[name] for name in task.columns),
            padding="max_length" if arguments.pad_to_max_length else False,
            max_length=length,
            truncation=True,
        )
        if "label" in batch:
            labels = batch["label"]
            result["labels"] = [label_order[i] for i in labels] if label_order else labels
        return result

    return {
        name: data.map(
            encode, batched=True, remove_columns=data.column_names, desc=f"Tokenizing {name}"
        )
        for name, data in splits.items()
    }


def collator(tokenizer: PreTrainedTokenizerBase, pad_to_max_length: bool, fp16: bool) -> Any:
    """Pads a batch to its longest example; to a multiple of 8 for fp16's tensor cores."""
    if pad_to_max_length:
        return default_data_collator
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if fp16 else None)
