"""From a model's outputs to a task's metrics."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from glue.tasks import Task

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


def score(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics by their official names; GLUE's two also as a mean: `combined_score`."""
    values = {name: float(_METRICS[name](labels, predictions)) for name in task.metrics}
    if len(values) > 1 and not task.own:
        values["combined_score"] = float(np.mean(list(values.values())))
    return values


def compute_metrics(task: Task) -> Callable[[Any], dict[str, float]]:
    """The Trainer's `compute_metrics` for a task."""
    return lambda p: score(task, predictions_of(p.predictions, task), p.label_ids)


def mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Cross entropy, or the squared error for regression: what the model's head computes."""
    values, wanted = torch.from_numpy(logits), torch.from_numpy(labels)
    if values.shape[-1] == 1:
        return torch.nn.functional.mse_loss(values.squeeze(-1), wanted.float()).item()
    return torch.nn.functional.cross_entropy(values, wanted.long()).item()
