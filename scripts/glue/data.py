"""A GLUE task's examples, from the hub, a folder or the embedded sample, checked at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from glue.arguments import DataArguments
from glue.errors import UsageError
from glue.files import find_split, read_columns
from glue.tasks import Task, get_task

HUB = "nyu-mll/glue"
SAMPLE = Path(__file__).with_name("sample")


def load_splits(
    task: Task,
    arguments: DataArguments,
    *,
    train: bool,
    validation: bool,
    test: bool,
    cache_dir: str | None = None,
) -> dict[str, Dataset]:
    """The splits that a run needs, with the task's columns and `label`, cut to `max_*_samples`.

    Labels are class numbers (float scores for regression), or -1 in unlabelled test splits.

    Raises:
        UsageError: a split, a column or a label is missing or wrong.
    """
    if train and task.train is None:
        raise UsageError(
            f"--do_train --task_name {task.name}: it has a test split only. Train on mnli, "
            f"then --task_name {task.name} --do_predict with --model_name_or_path OUTPUT_DIR"
        )
    wanted = {task.train: arguments.max_train_samples} if train else {}
    if validation:
        wanted |= dict.fromkeys(task.validation, arguments.max_eval_samples)
    if test:
        wanted |= dict.fromkeys(task.test, arguments.max_predict_samples)
    result = {}
    for split, limit in wanted.items():
        columns, source = _load(task, str(split), arguments, cache_dir)
        columns = {name: values[:limit] for name, values in columns.items()}
        result[str(split)] = _checked(columns, task, source, labelled=split not in task.test)
    return result


def ax_of(arguments: DataArguments, cache_dir: str | None) -> Dataset | None:
    """MNLI's diagnostic, where the data has it: every MNLI prediction can carry it."""
    task = get_task("ax")
    if arguments.data_dir and task_folder(arguments.data_dir, task) == Path(arguments.data_dir):
        return None  # no folder of its own there
    splits = load_splits(
        task, arguments, train=False, validation=False, test=True, cache_dir=cache_dir
    )
    return splits["test"]


def task_folder(data_dir: str, task: Task) -> Path:
    """`data_dir/TASK` where it exists (`SST-2` counts as sst2), else `data_dir` itself.

    Raises:
        UsageError: `data_dir` is not a folder.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UsageError(f"--data_dir {data_dir}: no such folder")
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"--data_dir {data_dir}: cannot be read: {error.strerror}") from error
    for child in children:
        if child.is_dir() and child.name.lower().replace("-", "").replace("_", "") == task.name:
            return child
    return folder


def _load(
    task: Task, split: str, arguments: DataArguments, cache_dir: str | None
) -> tuple[dict[str, Sequence[Any]], str]:
    """The split's columns and, for messages, where they came from."""
    if arguments.use_sample:
        if task.name != "sst2":
            raise UsageError(
                f"--use_sample: the sample is sst2, not {task.name}; use --task_name sst2, or "
                "--data_dir"
            )
        if split not in ("train", "validation"):
            raise UsageError(f"--use_sample: the sample has no {split} split; use --data_dir")
    if arguments.use_sample or arguments.data_dir:
        folder = SAMPLE if arguments.use_sample else task_folder(arguments.data_dir or "", task)
        if task.name == "ax" and folder.name.lower() == "mnli":
            raise UsageError(f"--data_dir {folder}: no ax data there")
        first, *more = find_split(folder, split)
        columns: dict[str, Sequence[Any]] = {**read_columns(first)}
        for path in more:
            shard = read_columns(path)
            if shard.keys() != columns.keys():
                raise UsageError(
                    f"{path}: has the columns {', '.join(shard)}, and {first.name} has "
                    f"{', '.join(columns)}; give shards of one set"
                )
            columns = {name: [*values, *shard[name]] for name, values in columns.items()}
        return columns, str(first)
    try:
        data = load_dataset(HUB, task.name, split=split, cache_dir=cache_dir)
    except Exception as error:  # the hub's client raises a dozen kinds, none of them in common
        raise UsageError(
            f"cannot load {HUB} ({task.name}, {split}) from the hub: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}. Without a network give the files "
            "by --data_dir FOLDER, or try --task_name sst2 --use_sample"
        ) from error
    return {name: data[name] for name in data.column_names}, f"{HUB}/{task.name}/{split}"


def _checked(
    data: Mapping[str, Sequence[Any]], task: Task, source: str, *, labelled: bool
) -> Dataset:
    """The task's columns and numeric labels alone, or an error that names column, value and row."""
    needed = [*task.columns, *(["label"] if labelled else [])]
    missing = [name for name in needed if name not in data]
    if missing:
        raise UsageError(
            f"{source}: task {task.name} needs the columns {', '.join(needed)}; missing "
            f"{', '.join(missing)}; found {', '.join(data) or 'none'}"
        )
    if len(data[needed[0]]) == 0:
        raise UsageError(f"{source}: no examples")
    columns: dict[str, list[Any]] = {n: _texts(data[n], n, source) for n in task.columns}
    if labelled:
        columns["label"] = [_label(each, n, task, source) for n, each in enumerate(data["label"])]
    return Dataset.from_dict(columns)


def _texts(values: Sequence[Any], name: str, source: str) -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise UsageError(f"{source}: {name} in row {row} is {value!r:.80}, expected text")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UsageError(
                f"{source}: {name} in row {row} has half a character ({value!a:.80}); write "
                "characters beyond U+FFFF as they are, or as two \\u escapes"
            )
    return list(values)


def _label(value: Any, row: int, task: Task, source: str) -> int | float:
    """A score for regression; a class number, which may be given as its name."""
    where = f"{source}: label {value!r:.80} in row {row}"
    if task.labels and value in task.labels:
        return task.labels.index(value)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if task.is_regression:
        wrong, wanted = not math.isfinite(number), "a number"
        most, names = 5, "scores from 0 to 5"
    else:
        wrong, wanted = not number.is_integer(), "an integer"
        most, names = task.num_labels - 1, ", ".join(f"{i} {n}" for i, n in enumerate(task.labels))
    if wrong or not 0 <= number <= most:
        verb = "needs" if task.is_regression else "has"
        problem = f"not {wanted}" if wrong else "out of range"
        raise UsageError(f"{where} is {problem}; {task.name} {verb} {names}")
    return number if task.is_regression else int(number)
