"""A task's examples, from the hub, files or the embedded sample, checked at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset
from transformers import PretrainedConfig

from glue.arguments import DataArguments
from glue.errors import UsageError
from glue.files import read_columns, read_split
from glue.own import Split, describe
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
    config: PretrainedConfig | None = None,
) -> tuple[Task, dict[str, Dataset]]:
    """The splits that a run needs, with the task's columns and `label`, cut to `max_*_samples`.

    Labels are class numbers (float scores for regression); test splits have none. The task of
    one's own data is described by it, or by the model's `config`.

    Raises:
        UsageError: a split, a column or a label is missing or wrong.
    """
    if train and not task.train:
        raise UsageError(
            f"--do_train --task_name {task.name}: it has a test split only. Train on mnli, "
            f"then --task_name {task.name} --do_predict with --model_name_or_path OUTPUT_DIR"
        )
    wanted = {task.train: arguments.max_train_samples} if train else {}
    if validation:
        wanted |= dict.fromkeys(task.validation, arguments.max_eval_samples)
    if test:
        wanted |= dict.fromkeys(task.test, arguments.max_predict_samples)
    load = _load_own if task.own else _load
    raw = {split: load(task, split, arguments, cache_dir) for split in wanted}
    if task.own and config is not None:
        task = describe(raw, arguments, config)
    result = {}
    for split, (columns, source) in raw.items():
        columns = {name: values[: wanted[split]] for name, values in columns.items()}
        result[split] = _checked(columns, task, source, labelled=split not in task.test)
    return task, result


def ax_of(arguments: DataArguments, cache_dir: str | None) -> Dataset | None:
    """MNLI's diagnostic, where the data has it: every MNLI prediction can carry it."""
    task = get_task("ax")
    if arguments.data_dir and task_folder(arguments.data_dir, task) == Path(arguments.data_dir):
        return None  # no folder of its own there
    _, splits = load_splits(
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


def _load(task: Task, split: str, arguments: DataArguments, cache_dir: str | None) -> Split:
    """The split's columns and, for messages, where they came from."""
    if arguments.use_sample and (task.name != "sst2" or split not in ("train", "validation")):
        raise UsageError(
            f"--use_sample: the sample is sst2's train and validation, not {task.name}'s {split}; "
            "use --task_name sst2, or --data_dir"
        )
    if arguments.use_sample or arguments.data_dir:
        folder = SAMPLE if arguments.use_sample else task_folder(arguments.data_dir or "", task)
        if task.name == "ax" and folder.name.lower() == "mnli":
            raise UsageError(f"--data_dir {folder}: no ax data there")
        columns, first = read_split(folder, split)
        return columns, str(first)
    remedy = "give the files by --data_dir FOLDER, or try --task_name sst2 --use_sample"
    data = _from_hub(HUB, task.name, split, cache_dir, remedy)
    return {name: data[name] for name in data.column_names}, f"{HUB}/{task.name}/{split}"


def _load_own(task: Task, split: str, arguments: DataArguments, cache_dir: str | None) -> Split:
    """The same of one's own data; labels of a known class by its name."""
    name, label = arguments.dataset_name, arguments.label_column_name
    if name is None:
        path = getattr(arguments, f"{split}_file")
        return read_columns(Path(path)), path
    split = getattr(arguments, f"{split}_split_name")
    data = _from_hub(name, arguments.dataset_config_name, split, cache_dir, "use --train_file, ...")
    columns = {name: data[name] for name in data.column_names}
    if isinstance(classes := data.features.get(label), ClassLabel):
        names = {number: name for number, name in enumerate(classes.names)}
        columns[label] = [names.get(number) for number in columns[label]]  # -1: not known
    return columns, f"{name}/{split}"


def _from_hub(
    name: str, config: str | None, split: str, cache_dir: str | None, remedy: str
) -> Dataset:
    try:
        return load_dataset(name, config, split=split, cache_dir=cache_dir)
    except Exception as error:  # the hub's client raises a dozen kinds, none of them in common
        raise UsageError(
            f"cannot load {name} ({', '.join(filter(None, (config, split)))}) from the hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}. Without "
            f"a network {remedy}"
        ) from error


def _checked(
    data: Mapping[str, Sequence[Any]], task: Task, source: str, *, labelled: bool
) -> Dataset:
    """The task's columns and numeric labels alone, or an error that names column, value and row."""
    needed = [*task.columns, *([task.label] if labelled else [])]
    missing = [name for name in needed if name not in data]
    if missing:
        raise UsageError(
            f"{source}: task {task.name} needs the columns {', '.join(needed)}; missing "
            f"{', '.join(missing)}; found {', '.join(data) or 'none'}"
        )
    if len(data[needed[0]]) == 0:
        raise UsageError(f"{source}: no examples")
    columns: dict[str, list[Any]] = {n: _texts(data[n], n, source, task.own) for n in task.columns}
    if labelled:
        labels = enumerate(data[task.label])
        columns["label"] = [_label(each, row, task, source) for row, each in labels]
    return Dataset.from_dict(columns)


def _texts(values: Sequence[Any], name: str, source: str, not_empty: bool) -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str) or (not_empty and not value.strip()):
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
    if task.labels and (name := str(value) if task.own else value) in task.labels:
        return task.labels.index(name)
    if task.own and task.labels:
        problem = "missing" if value in (None, "") else "unknown"
        raise UsageError(f"{where} is {problem}; the labels are {', '.join(task.labels)}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if task.is_regression:
        wrong, wanted = not math.isfinite(number), "a number"
        least, most = task.scores
        names = "finite numbers" if task.own else f"scores from {least:g} to {most:g}"
    else:
        wrong, wanted = not number.is_integer(), "an integer"
        least, most = 0, task.num_labels - 1
        names = ", ".join(f"{i} {n}" for i, n in enumerate(task.labels))
    if wrong or not least <= number <= most:
        verb = "needs" if task.is_regression else "has"
        problem = f"not {wanted}" if wrong else "out of range"
        raise UsageError(f"{where} is {problem}; {task.name} {verb} {names}")
    return number if task.is_regression else int(number)
