"""Text to token numbers."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from accelerate import PartialState
from datasets import Dataset
from datasets.fingerprint import Hasher
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
    label_order: tuple[int, ...] | None,
    cache_dir: str | None,
) -> dict[str, Dataset]:
    """Every split as `input_ids`, `attention_mask`, `labels`, cut to `max_seq_length` tokens.

    The result is made once per machine and read from `cache_dir` after that.
    `label_order[i]` is the model's number of the task's class i, where they differ.
    """
    length = arguments.max_seq_length
    if length > tokenizer.model_max_length:
        length = tokenizer.model_max_length
        logger.warning("--max_seq_length is more than the model's %d; using that", length)
    own = tokenizer.num_special_tokens_to_add(pair=len(task.columns) == 2)
    if length <= own:  # tokenizers would not cut at all
        raise UsageError(
            f"--max_seq_length {length}: the tokenizer adds {own} tokens of its own, which leave "
            f"no room for text; give {own + 1} or more"
        )
    padding = "max_length" if arguments.pad_to_max_length else False

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [batch[name] for name in task.columns]
        result = tokenizer(*texts, padding=padding, max_length=length, truncation=True)
        if "label" in batch:
            labels = batch["label"]
            result["labels"] = [label_order[i] for i in labels] if label_order else labels
        return result

    cache: Path | None = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "dwmgrad-glue"
    # as text, and once: a dictionary of tokens is slow to hash
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(tokenizer).__name__
    words = backend.to_str() if backend else f"{kind} {sorted(tokenizer.get_vocab().items())}"
    made_from = Hasher.hash([repr(tokenizer), words, task.columns, padding, length, label_order])

    def encoded(name: str, data: Dataset, folder: Path | None) -> Dataset:
        nonlocal cache
        file = folder and folder / f"{Hasher.hash([data._fingerprint, made_from])}.arrow"
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            return data.map(
                encode,
                batched=True,
                remove_columns=data.column_names,
                desc=f"Tokenizing {name}",
                cache_file_name=file and str(file),
            )
        except (OSError, pyarrow.ArrowInvalid) as error:  # no such place; a full disk; half a file
            if file is None:
                raise
            logger.warning(
                "--cache_dir: %s cannot be used (%s), so that tokenized data is kept in memory, "
                "for this run alone; make room, remove a damaged file, or give another folder",
                file,
                error,
            )
            if not os.path.isfile(file):  # no such place, or no room: so it is with the others
                cache = None
            return encoded(name, data, None)

    with PartialState().local_main_process_first(), _as_it_was(backend):
        return {name: encoded(name, data, cache) for name, data in splits.items()}


@contextlib.contextmanager
def _as_it_was(backend: Any) -> Iterator[None]:
    """Encoding leaves its length in a fast tokenizer, with which it would be saved."""
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.no_truncation()
        backend.no_padding()
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)


def collator(tokenizer: PreTrainedTokenizerBase, pad_to_max_length: bool, fp16: bool) -> Any:
    """Pads a batch to its longest example; to a multiple of 8 for fp16's tensor cores."""
    if pad_to_max_length:
        return default_data_collator
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if fp16 else None)
