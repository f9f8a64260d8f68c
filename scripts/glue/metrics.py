"""From a model's outputs to a GLUE task's metrics."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch

from glue.errors import INSTALL, UsageError
from glue.tasks import Task

METRIC_MODULE = Path(__file__).with_name("glue_metric.py")


def load_metric(task: Task) -> evaluate.Metric:
    """The task's metric, safe beside other processes: all in memory, an id of its own."""
    folder = tempfile.TemporaryDirectory()
    options: dict[str, Any] = {
        "config_name": task.name,
        "keep_in_memory": True,
        "experiment_id": uuid.uuid4().hex,
        "cache_dir": folder.name,
    }
    try:
        metric = evaluate.load(str(METRIC_MODULE), **options)
    except ImportError as error:  # evaluate's own, with names that pip does not have
        raise UsageError(
            f"the metrics need scikit-learn and scipy: {INSTALL.format('glue')}"
        ) from error
    except OSError:  # evaluate copies the module to the user's cache, which may be read-only
        from glue.glue_metric import GlueMetric

        metric = GlueMetric(**options)
    metric._folder = folder  # lives as long as the metric does
    return metric


def predictions_of(outputs: Any, task: Task) -> np.ndarray:
    """Class numbers, or scores for regression, from logits of shape (examples, labels)."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return np.squeeze(logits, axis=-1) if task.is_regression else np.argmax(logits, axis=-1)


def score(metric: evaluate.Metric, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metric's values; where there are two, also their mean as `combined_score`."""
    values = metric.compute(predictions=predictions, references=labels)
    if len(values) > 1:
        values["combined_score"] = float(np.mean(list(values.values())))
    return values


def compute_metrics(task: Task) -> Callable[[Any], dict[str, float]]:
    """The Trainer's `compute_metrics` for a task."""
    metric = load_metric(task)
    return lambda p: score(metric, predictions_of(p.predictions, task), p.label_ids)


def mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Cross entropy, or the squared error for regression: what the model's head computes."""
    values, wanted = torch.from_numpy(logits), torch.from_numpy(labels)
    if values.shape[-1] == 1:
        return torch.nn.functional.mse_loss(values.squeeze(-1), wanted.float()).item()
    return torch.nn.functional.cross_entropy(values, wanted.long()).item()
