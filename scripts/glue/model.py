"""The configuration, tokenizer and model of a run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute
from accelerate import PartialState
from datasets import Dataset
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from glue.arguments import DataArguments, ModelArguments
from glue.data import SAMPLE
from glue.errors import UsageError, one_line
from glue.tasks import Task

DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, RuntimeError),
    *(EOFError, pickle.UnpicklingError, SafetensorError),
)
"""What transformers, peft and torch raise for files that are missing or half there."""


def load_tokenizer(model: ModelArguments, data: DataArguments) -> PreTrainedTokenizerBase:
    """The fast tokenizer that belongs to the model (or --tokenizer_name)."""
    names = ("tokenizer_name", "model_name_or_path", "config_name")
    name = next((name for name in names if getattr(model, name)), "use_sample")
    source = getattr(model, name, None) or _sample_or_error(data)
    tokenizer = _load(name, source, AutoTokenizer.from_pretrained, model)
    problem = None
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers made it up
        problem = "has no tokenizer's files, or empty ones"
    elif tokenizer.pad_token is None:
        problem = "its tokenizer cannot pad, as it has no pad_token"
    if problem:
        raise UsageError(f"--{name} {source}: {problem}; give one that does by --tokenizer_name")
    return tokenizer


def check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, Dataset]
) -> None:
    """Raise a UsageError if a split, or its padding, has a token without an embedding."""
    try:
        rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # CANINE, which hashes
        return
    found = [("the padding", tokenizer.pad_token_id)]
    for split, data in splits.items():
        most = pyarrow.compute.max(pyarrow.compute.list_flatten(data.data.column("input_ids")))
        found.append((f"the {split} split", most.as_py()))
    for what, token in found:
        if rows is not None and token is not None and token >= rows:
            raise UsageError(
                f"--tokenizer_name {tokenizer.name_or_path}: gives {what} token {token}, and the "
                f"model has {rows} embeddings; give the model's own tokenizer, or a model whose "
                "embeddings were resized for this one"
            )


def load_config(
    model: ModelArguments, data: DataArguments, adapter: str | None = None
) -> PretrainedConfig:
    """The model's configuration, or the one that was saved beside an adapter: it has the labels."""
    given = model.config_name or model.model_name_or_path or _sample_or_error(data)
    name = "config_name" if model.config_name else "model_name_or_path"
    config = _load(name, given, AutoConfig.from_pretrained, model)
    if not adapter or not (Path(adapter) / "config.json").is_file():
        return config
    beside = _load("adapter_name_or_path", adapter, AutoConfig.from_pretrained, model)
    if beside.model_type != config.model_type:
        raise UsageError(
            f"--adapter_name_or_path {adapter}: is of a {beside.model_type}, and "
            f"--{name} {given} is a {config.model_type}; give the adapter's own base"
        )
    return config if model.config_name else beside


def load_model(model: ModelArguments, config: PretrainedConfig, task: Task) -> PreTrainedModel:
    """A sequence classifier with the task's labels; random weights where only a config is given.

    Raises:
        UsageError: nothing to load, or it cannot be loaded.
    """
    _set_labels(config, task, model)
    if model.model_name_or_path is None:
        if PartialState().is_main_process:
            print(f"Building {config.model_type} with random weights from {config._name_or_path}")
        with one_line(*DAMAGED, ImportError, of=f"--config_name {config._name_or_path}: "):
            return AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=model.trust_remote_code
            )
    return _load(
        "model_name_or_path",
        model.model_name_or_path,
        AutoModelForSequenceClassification.from_pretrained,
        model,
        config=config,
        ignore_mismatched_sizes=model.ignore_mismatched_sizes,
    )


def label_order(config: PretrainedConfig, task: Task) -> tuple[int, ...] | None:
    """The model's number of each class of the task; None where they are the task's own."""
    names = {str(name): int(number) for name, number in (config.label2id or {}).items()}
    if not task.own:  # published models write ENTAILMENT, too
        names = {name.lower(): number for name, number in names.items()}
    if task.is_regression or sorted(names) != sorted(task.labels):
        return None
    order = tuple(names[name] for name in task.labels)
    return None if order == tuple(range(task.num_labels)) else order


def _set_labels(config: PretrainedConfig, task: Task, model: ModelArguments) -> None:
    """The task's labels into the configuration; a model that knows them keeps its own order."""
    if model.model_name_or_path is not None and label_order(config, task) is not None:
        return
    same = config.num_labels == task.num_labels
    head = (config.architectures or [""])[0].endswith("ForSequenceClassification")
    if model.model_name_or_path and head and not same and not model.ignore_mismatched_sizes:
        raise UsageError(
            f"--model_name_or_path {model.model_name_or_path}: its head has {config.num_labels} "
            f"labels, {task.name} needs {task.num_labels}; --ignore_mismatched_sizes starts a new "
            "head"
        )
    config.num_labels = task.num_labels
    config.finetuning_task = task.name
    config.problem_type = "regression" if task.is_regression else "single_label_classification"
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {name: number for number, name in enumerate(task.labels)}


def _sample_or_error(data: DataArguments) -> str:
    if data.use_sample:
        return str(SAMPLE)
    raise UsageError(
        "--model_name_or_path is missing: give a model (hub name or folder), or --config_name for "
        "random weights, or --use_sample for the small model inside the package"
    )


def _load(name: str, source: str, load: Any, model: ModelArguments, **options: Any) -> Any:
    options |= {"cache_dir": model.cache_dir, "revision": model.model_revision}
    options |= {"token": model.token, "trust_remote_code": model.trust_remote_code}
    of = f"--{name} {source}: cannot be loaded: "
    with one_line(ImportError, of=of):  # of a package that this model needs
        try:
            return load(source, **options)
        except DAMAGED as error:
            raise UsageError(f"{of}{_reason(name, source, error)}") from error


def _reason(name: str, source: str, error: Exception) -> str:
    """Why a source cannot be loaded, and what to give."""
    folder = Path(source)
    if name == "model_name_or_path" and (folder / "adapter_config.json").is_file():
        return f"it holds an adapter: give its base here, and --adapter_name_or_path {source}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if folder.is_absolute() or source.startswith((".", "~")):
        reason = reason if folder.exists() else "there is no such folder."
    return (
        f"{reason} Give a folder that save_pretrained() wrote, or a name on the hub (which needs a "
        "network)"
    )
