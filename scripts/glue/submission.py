"""Test predictions in the form that gluebenchmark.com takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from glue.metrics import predictions_of
from glue.setup import PreparedRun
from glue.tasks import Task


def write_submissions(run: PreparedRun, outputs: Callable[[str], Any], writes: bool) -> Path:
    """Every test split's file; `outputs(SPLIT)` gives the model's, on every rank, one `writes`."""
    folder = run.folder / "submission"
    for split, task, name in run.predictions():
        predictions = predictions_of(outputs(split), task)
        if writes:
            write_submission(folder / name, task, run.in_task_order(predictions))
    return folder


def write_submission(path: Path, task: Task, predictions: np.ndarray) -> None:
    """Write `index<TAB>prediction`, one line per example in the file's order.

    `predictions` are the task's class numbers, or scores (cut to 0 .. 5) for regression.
    """
    if task.is_regression:
        texts = [f"{value:.3f}" for value in np.clip(predictions, 0.0, 5.0)]
    else:
        texts = [task.labels[i] if task.write_names else str(i) for i in map(int, predictions)]
    lines = ["index\tprediction", *(f"{index}\t{text}" for index, text in enumerate(texts))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
