"""The tasks as data: columns, labels, metrics, splits, submission files."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glue.errors import UsageError, choose


@dataclass(frozen=True)
class Task:
    """One GLUE task, with the names of the Hugging Face `nyu-mll/glue` data set, or one's own.

    Attributes:
        columns: one or two text columns.
        labels: the class names in the order of their numbers; empty for regression.
        submission: one GLUE submission file per test split.
        train: the split's name; empty where there is none.
        metrics: the metric names, the main one first.
        write_names: whether GLUE wants class names (not numbers) in the submission.
        label: the column of the labels.
        scores: for regression, the least and the most.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    submission: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    train: str = "train"
    validation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    write_names: bool = False
    label: str = "label"
    scores: tuple[float, float] = (0.0, 5.0)

    @property
    def own(self) -> bool:
        """Whether it is one's own data, not GLUE."""
        return self.name == "own data"

    @property
    def is_regression(self) -> bool:
        return not self.labels

    @property
    def num_labels(self) -> int:
        """The width of the model's output: the number of classes, or 1 for regression."""
        return len(self.labels) or 1

    @property
    def main_metric(self) -> str:
        return self.metrics[0]


_ONE, _PAIR = ("sentence",), ("sentence1", "sentence2")
_PREMISE = ("premise", "hypothesis")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
_F1, _MATTHEWS = ("accuracy", "f1"), ("matthews_correlation",)

_ALL = (
    Task("cola", _ONE, ("unacceptable", "acceptable"), ("CoLA.tsv",), _MATTHEWS),
    Task("sst2", _ONE, ("negative", "positive"), ("SST-2.tsv",)),
    Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("MRPC.tsv",), _F1),
    Task("stsb", _PAIR, (), ("STS-B.tsv",), ("pearson", "spearmanr")),
    Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("QQP.tsv",), _F1),
    Task(
        "mnli",
        _PREMISE,
        _MNLI,
        ("MNLI-m.tsv", "MNLI-mm.tsv"),
        validation=("validation_matched", "validation_mismatched"),
        test=("test_matched", "test_mismatched"),
        write_names=True,
    ),
    Task("qnli", ("question", "sentence"), _ENTAILMENT, ("QNLI.tsv",), write_names=True),
    Task("rte", _PAIR, _ENTAILMENT, ("RTE.tsv",), write_names=True),
    Task("wnli", _PAIR, ("not_entailment", "entailment"), ("WNLI.tsv",)),
    # MNLI's diagnostic: no training or validation data; predict it with a model tuned on MNLI.
    Task("ax", _PREMISE, _MNLI, ("AX.tsv",), _MATTHEWS, "", (), write_names=True),
)
OWN = Task(
    "own data",
    (),
    (),
    ("test.tsv",),
    ("accuracy", "f1_macro"),
    write_names=True,
    scores=(-math.inf, math.inf),
)
"""One's own data; `glue.own` finds its columns and labels."""
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def get_task(name: str | None) -> Task:
    """The task called `name` (case and `-`, `_` are ignored: `SST-2` is `sst2`).

    Raises:
        UsageError: there is no such task, or no name; the message lists them.
    """
    if name is None:
        raise UsageError(
            f"--task_name is missing: one of {', '.join(TASKS)} ('ax' for predictions alone); or, "
            "for one's own data, --train_file or --dataset_name"
        )
    key = name.lower().replace("-", "").replace("_", "")
    choose("--task_name", key, TASKS, given=name)
    return TASKS[key]
