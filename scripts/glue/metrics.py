"""From a model's outputs to a task's metrics, and to the files that gluebenchmark.com takes."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from glue.tasks import Task

Order = tuple[int, ...] | None
"""The model's number of each class of the task; None where they are the task's own."""
_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "f1_macro": functools.partial(f1_score, average="macro"),
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda labels, predictions: pearsonr(predictions, labels)[0],
    "spearmanr": lambda labels, predictions: spearmanr(predictions, labels)[0],
}


def predictions_of(outputs: Any, task: Task) -> np.ndarray:
    """Class numbers, or scores for regression, from logits of shape (examples, labels)."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return np.squeeze(logits, axis=-1) if task.is_regression else np.argmax(logits, axis=-1)


def names_of(task: Task) -> tuple[str, ...]:
    """What `score` computes: the task's metrics; of two of GLUE's also the mean."""
    both = len(task.metrics) > 1 and not task.own
    return (*task.metrics, *(["combined_score"] if both else []))


def score(
    task: Task, predictions: np.ndarray, labels: np.ndarray, order: Order = None
) -> dict[str, float]:
    """The task's metrics by their official names; GLUE's two also as a mean: `combined_score`.

    With an `order` the numbers are the model's; F1 needs the task's, of which 1 is the positive.
    """
    predictions, labels = _of_task(predictions, order), _of_task(labels, order)
    values = {name: float(_METRICS[name](labels, predictions)) for name in task.metrics}
    if "combined_score" in names_of(task):
        values["combined_score"] = float(np.mean(list(values.values())))
    return values


def _of_task(numbers: np.ndarray, order: Order) -> np.ndarray:
    """From the model's class numbers to the task's."""
    return numbers if order is None else np.argsort(order)[numbers]


def compute_metrics(task: Task, order: Order = None) -> Callable[[Any], dict[str, float]]:
    """The Trainer's `compute_metrics` for a task, and a model with this order of the classes."""
    return lambda p: score(task, predictions_of(p.predictions, task), p.label_ids, order)


def mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Cross entropy, or the squared error for regression: what the model's head computes."""
    values, wanted = torch.from_numpy(logits), torch.from_numpy(labels)
    if values.shape[-1] == 1:
        return torch.nn.functional.mse_loss(values.squeeze(-1), wanted.float()).item()
    return torch.nn.functional.cross_entropy(values, wanted.long()).item()


def write_submissions(run: Any, outputs: Callable[[str], Any], writes: bool) -> Path:
    """Every test split's file; `outputs(SPLIT)` gives the model's, on every rank, one `writes`.

    A file has a line `index<TAB>prediction` for each example, in the order of the data: a class's
    name or number, or a score, cut to the task's.
    """
    folder = run.folder / ("predictions" if run.task.own else "submission")
    for split, task, name in run.predictions():
        predictions = predictions_of(outputs(split), task)
        if not writes:
            continue
        if task.is_regression:
            texts = [f"{value:.6g}" for value in np.clip(predictions, *task.scores)]
        else:
            numbers = map(int, _of_task(predictions, run.order))
            texts = [task.labels[i] if task.write_names else str(i) for i in numbers]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, delimiter="\t", lineterminator="\n")
            lines.writerows([("index", "prediction"), *enumerate(texts)])
    return folder
