"""One's own data: files or a data set of the hub, its text columns, its labels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig, TrainingArguments

from glue.arguments import DataArguments
from glue.errors import UsageError
from glue.files import SUFFIXES
from glue.tasks import OWN, Task

_FILES = ("train_file", "validation_file", "test_file")
_SPLITS = ("train_split_name", "validation_split_name", "test_split_name")
_OF_A_DATA_SET = ("dataset_config_name", *_SPLITS)
_OF_OWN = ("text_column_name", "label_column_name", "do_regression")
_OF_GLUE = ("task_name", "data_dir", "use_sample")

Split = tuple[Mapping[str, Sequence[Any]], str]
"""Columns and, for messages, where they came from."""


def own_task(training: TrainingArguments, data: DataArguments) -> Task | None:
    """The task, without its columns and labels; None where the arguments name no data of one's own.

    Raises:
        UsageError: arguments that exclude each other, or a file that is missing.
    """
    if data.dataset_name:
        _refuse(data, (*_FILES, *_OF_GLUE), "and --dataset_name exclude each other")
    elif any(getattr(data, name) for name in _FILES):
        _refuse(data, _OF_GLUE, "and one's own files exclude each other")
        _refuse(data, _OF_A_DATA_SET, "needs --dataset_name")
    else:
        _refuse(data, (*_OF_OWN, *_OF_A_DATA_SET), "needs --train_file, ... or --dataset_name")
        return None
    for work, name in zip(("do_train", "do_eval", "do_predict"), _FILES, strict=True):
        path = getattr(data, name)
        if getattr(training, work) and not data.dataset_name and not path:
            raise UsageError(f"--{work} needs --{name}: {', '.join(SUFFIXES)}")
        if path and not path.endswith(SUFFIXES):
            raise UsageError(f"--{name} {path}: its name must end in {', '.join(SUFFIXES)}")
    texts = data.text_column_name or []
    if len(texts) > 2 or len({*texts, data.label_column_name}) <= len(texts):
        raise UsageError(
            f"--text_column_name {' '.join(texts)}: give one or two columns, and not "
            f"--label_column_name {data.label_column_name}"
        )
    return OWN


def _refuse(data: DataArguments, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(data, name) != getattr(DataArguments(), name):
            raise UsageError(f"--{name} {getattr(data, name)}: {why}")


def describe(raw: Mapping[str, Split], data: DataArguments, config: PretrainedConfig) -> Task:
    """The task with its columns, and its labels: the training data's, or else the model's.

    Raises:
        UsageError: a column is missing, or there is nothing to tell apart.
    """
    columns, source = next(iter(raw.values()))
    label, texts = data.label_column_name, data.text_column_name
    if "train" in raw and label not in columns:
        found = ", ".join(map(repr, columns))
        remedy = f"give --label_column_name: {found}"
        if len(columns) == 1 and source.endswith((".csv", ".tsv")):
            wanted = "commas" if source.endswith(".csv") else "tabs"
            remedy = f"its one column is {found}; are there {wanted} between its columns?"
        raise UsageError(f"{source}: no column {label}; {remedy}")
    if texts is None:
        texts = [name for name in columns if name != label]
        if len(texts) != 1:
            raise UsageError(f"--text_column_name is missing: {source} has {', '.join(columns)}")
    if "label" in texts:
        raise UsageError(
            f"--text_column_name {' '.join(texts)}: a text column cannot be called label; rename "
            f"it in {source}"
        )
    if "train" in raw:
        labels = _labels(columns[label], f"{source}: {label}", data.do_regression)
    else:
        scores = config.num_labels == 1
        names: Any = config.id2label or {}
        labels = () if scores else tuple(str(names[number]) for number in sorted(names))
        if data.do_regression not in (None, scores):
            raise UsageError(
                f"--do_regression {data.do_regression}: the model was trained for "
                f"{', '.join(labels) or 'regression'}"
            )
    metrics = OWN.metrics if labels else ("pearson", "spearmanr")
    return dataclasses.replace(
        OWN, columns=tuple(texts), label=label, labels=labels, metrics=metrics
    )


def _labels(values: Sequence[Any], where: str, regression: bool | None) -> tuple[str, ...]:
    """The classes, sorted; none where the labels are numbers and not all of them whole ones."""
    for row, value in enumerate(values):
        if value in (None, ""):
            raise UsageError(f"{where} in row {row} is missing: fill it in, or remove the row")
    names = set(map(str, values))
    whole = all(re.fullmatch(r"[+-]?\d{1,300}", name) for name in names)
    if regression is None:
        regression = not whole and all(map(_is_number, names))
    if regression:
        return ()
    if len(names) < 2:
        found = f"is {', '.join(names)} in every row" if names else "has no row"
        raise UsageError(f"{where} {found}: give two classes or more")
    return tuple(sorted(names, key=lambda name: (int(name), name)) if whole else sorted(names))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
