"""Test predictions, in the form that gluebenchmark.com takes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from glue.metrics import predictions_of
from glue.setup import PreparedRun
from glue.tasks import Task


def write_submissions(run: PreparedRun, outputs: Callable[[str], Any], writes: bool) -> Path:
    """Every test split's file; `outputs(SPLIT)` gives the model's, on every rank, one `writes`."""
    folder = run.folder / ("predictions" if run.task.own else "submission")
    for split, task, name in run.predictions():
        predictions = predictions_of(outputs(split), task)
        if writes:
            write_submission(folder / name, task, run.in_task_order(predictions))
    return folder


def write_submission(path: Path, task: Task, predictions: np.ndarray) -> None:
    """Write `index<TAB>prediction`, one line per example in the file's order.

    `predictions` are the task's class numbers, or scores (cut to the task's) for regression.
    """
    if task.is_regression:
        texts = [f"{value:.6g}" for value in np.clip(predictions, *task.scores)]
    else:
        texts = [task.labels[i] if task.write_names else str(i) for i in map(int, predictions)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, delimiter="\t", lineterminator="\n")
        lines.writerows([("index", "prediction"), *enumerate(texts)])
