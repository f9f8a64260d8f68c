"""The metric module against scikit-learn and scipy, by the official names."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from glue.metrics import predictions_of, score
from glue.tasks import TASKS
from scipy import stats
from sklearn import metrics as sklearn


@pytest.mark.parametrize("name", TASKS)
def test_values_and_names(name):
    task = TASKS[name]
    random = np.random.default_rng(0)
    labels = random.integers(0, task.num_labels, 200) if task.labels else random.random(200) * 5
    logits = random.normal(size=(200, task.num_labels)) + (0 if task.labels else labels[:, None])
    got = score(task, predictions := predictions_of(logits, task), labels)
    expected = {
        "accuracy": lambda: sklearn.accuracy_score(labels, predictions),
        "f1": lambda: sklearn.f1_score(labels, predictions),
        "matthews_correlation": lambda: sklearn.matthews_corrcoef(labels, predictions),
        "pearson": lambda: stats.pearsonr(labels, predictions)[0],
        "spearmanr": lambda: stats.spearmanr(labels, predictions)[0],
    }
    assert got.keys() - {"combined_score"} == set(task.metrics)
    for metric in task.metrics:
        assert got[metric] == pytest.approx(expected[metric](), rel=1e-4)
    if len(task.metrics) == 2:
        assert got["combined_score"] == pytest.approx(np.mean([got[m] for m in task.metrics]))


def test_f1_is_that_of_the_tasks_positive_class_whatever_the_models_order():
    """A model may know MRPC's classes by the other numbers: equivalent is 0 there."""
    labels, always = np.array([0, 0, 1, 0]), np.zeros(4, dtype=int)
    got = score(TASKS["mrpc"], always, labels, order=(1, 0))
    assert got["f1"] == sklearn.f1_score([1, 1, 0, 1], [1, 1, 1, 1])
    assert got["accuracy"] == 0.75 and score(TASKS["mrpc"], always, labels)["f1"] == 0


def test_two_metrics_at_once_do_not_meet():
    wrong, right = np.array([0, 1]), np.array([1, 0])
    for _ in range(2):
        assert score(TASKS["sst2"], right, right) == {"accuracy": 1.0}
        assert score(TASKS["sst2"], wrong, right) == {"accuracy": 0.0}


def test_a_cache_that_cannot_be_written():
    """Nothing is copied to a cache for a metric."""
    code = (
        "from glue.metrics import score; from glue.tasks import TASKS; import numpy as np;"
        "print(score(TASKS['sst2'], np.array([1]), np.array([1])))"
    )
    environment = {
        **os.environ,
        "HOME": "/dev/null",
        "HF_HOME": "/dev/null/hf",
        "HF_MODULES_CACHE": "/dev/null/modules",
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{'accuracy': 1.0}", done.stderr
