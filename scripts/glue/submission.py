"""Test predictions in the form that gluebenchmark.com takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from glue.tasks import Task


def write_submission(path: Path, task: Task, predictions: np.ndarray) -> Path:
    """Write `index<TAB>prediction`, one line per example in the file's order.

    `predictions` are the task's class numbers, or scores (cut to 0 .. 5) for regression.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write("index\tprediction\n")
        for index, value in enumerate(predictions):
            if task.is_regression:
                text = f"{min(max(float(value), 0.0), 5.0):.3f}"
            else:
                text = task.labels[int(value)] if task.write_names else str(int(value))
            file.write(f"{index}\t{text}\n")
    return path
