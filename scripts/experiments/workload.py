"""What every experiment has in common: a name, a metric, a budget of steps, and one way to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from glue.errors import UsageError
from torch import Tensor, nn
from torch.utils.data import StackDataset, default_collate

from experiments.contenders import SCHEDULES, get_contender

Rows: Any = StackDataset
"""A data set of tensors by name, a row an example; torch's types leave tensors out."""


def standard(**settings: Any) -> Any:
    """The value of `Workload.defaults` in a subclass."""
    return field(default_factory=lambda: dict(settings))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A task with a fixed budget. All fields are plain values: a workload travels to a process.

    Attributes:
        name: the folder of its results.
        metric: what `score` is.
        higher_is_better: whether a larger score is the better one.
        steps: the budget, in optimizer steps.
        defaults: settings that hold where a run does not say otherwise.
        lr_scale: of searches that are no longer made; their runs have it in their names.
        data_dir: the folder with the data, for workloads that do not bring their own.
    """

    name: str
    metric: str
    higher_is_better: bool = True
    steps: int
    defaults: Mapping[str, Any] = field(default_factory=dict)
    lr_scale: float = 1.0
    data_dir: str | None = None
    decay_is_l2: ClassVar[bool] = False
    """Whether the default `weight_decay` is meant as an L2 penalty, too. If not, optimizers that
    add it to the gradient have none: with Adam the decoupled 0.01 of AdamW stops all learning."""

    def check(self) -> None:
        """Raise a UsageError, before any training, if what the workload needs is not there."""

    def run(self, contender: str, settings: Mapping[str, Any], seed: int, folder: Path) -> dict:
        """Train once. The same arguments give the same numbers, on the same machine.

        Args:
            contender: a name of `contenders.CONTENDERS`.
            settings: `lr`, `weight_decay`, `schedule` (a name of `contenders.SCHEDULES`), `warmup`
                (a share of all steps), and arguments of the optimizer; `defaults` fill the gaps.
            seed: of the initial weights, of dropout and of the data's order.
            folder: for working files; what an interrupted run of the same arguments left in it is
                where this one goes on. Nothing in it is needed afterwards.

        Returns:
            Plain values, as JSON takes them:
            `score`: `metric` on the evaluation split at the end; None if the run diverged.
            `diverged`: whether a loss, or the score, was not finite; training stopped there.
            `train_loss`: the mean over the last 5 % of the steps; None if diverged.
            `steps`: the steps that were made.
            `seconds`: of training, without loading and evaluation.
            `history`: points by step: {step, loss}, the mean since the last such point, for
                DWMGrad with `window` and `effective_momentum` at that step; {step, score}.
            `increases`, `signal_noise`: DWMGrad's alone: the share of steps with a positive signal,
                and see `recording.signal_noise`.
            `metrics`: all that was measured at the end.
            `machine`, `versions`: where and with what it ran.
        """
        raise NotImplementedError

    def settings(self, contender: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` with the gaps filled, checked by building the optimizer once on one number.

        Raises:
            UsageError: a setting is missing, unknown or out of range.
        """
        own = get_contender(contender)
        result: dict[str, Any] = {"schedule": "constant", "warmup": 0.0, "weight_decay": 0.0}
        result |= {**own.defaults, **self.defaults}
        if not own.decoupled and not self.decay_is_l2:
            result["weight_decay"] = 0.0
        if own.schedule_free:
            result["schedule"] = "constant"
        result |= given
        for name in ("lr", "warmup", "weight_decay"):
            value = result.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UsageError(f"{contender}: {name} must be a number, got {value!r}")
            if not (math.isfinite(value) and value >= 0) or (name == "warmup" and value >= 1):
                raise UsageError(f"{contender}: {name} {value!r} is out of range")
        schedules = ["constant"] if own.schedule_free else list(SCHEDULES)
        if result["schedule"] not in schedules:
            raise UsageError(
                f"{contender}: schedule {result['schedule']!r}: choose from {', '.join(schedules)}"
            )
        own.check(result, self.steps)
        return result

    def description(self) -> dict[str, Any]:
        """What makes this workload's numbers: every field but where the data lies."""
        values = asdict(self)
        values.pop("data_dir")
        return values


@dataclass
class Job:
    """What the Trainer needs, made after the seed was set.

    Attributes:
        model: gives a loss when it is called with a batch's names.
        train, evaluation: the data sets.
        score: the score, from all metrics by their bare names (`loss` among them).
        collate: examples to a batch in training.
        compute_metrics: the Trainer's; None where the loss is enough.
        collate_evaluation: examples to a batch in evaluation; None: as in training.
        eval_batch_size: examples per batch in evaluation.
        max_grad_norm: the Trainer's gradient clipping; 0 for none.
        classes: how many there are, where the labels are classes.
    """

    model: nn.Module
    train: Any
    evaluation: Any
    score: Callable[[Mapping[str, float]], float]
    collate: Callable[[Any], Any] = default_collate
    compute_metrics: Callable[[Any], dict[str, float]] | None = None
    collate_evaluation: Callable[[Any], Any] | None = None
    eval_batch_size: int = 256
    max_grad_norm: float = 1.0
    classes: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainerWorkload(Workload):
    """One for the Hugging Face Trainer.

    Attributes:
        batch_size: examples per step.
        broken: the share of the batches that get wrong labels.
        bf16: whether the forward pass runs in bfloat16 (autocast); the loss is float32.
        evaluations: how often the score is taken, evenly spread; the last is at the end. An
            option of a workload only in subclasses that make it a field.
    """

    batch_size: int
    broken: float = 0.0
    bf16: bool = False
    evaluations = 3

    def description(self) -> dict[str, Any]:
        new = ("broken", "bf16", "holdout")  # where they are off, a run is as before there were any
        return {k: v for k, v in super().description().items() if v or k not in new}

    def job(self) -> Job:
        """Model and data of a run, whose seed is set."""
        raise NotImplementedError

    def run(self, contender: str, settings: Mapping[str, Any], seed: int, folder: Path) -> dict:
        from transformers import set_seed

        from experiments.training import train

        settings = self.settings(contender, settings)
        set_seed(seed)
        return train(self, self.job(), contender, settings, seed, folder)


def with_loss(logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
    """What the Trainer takes: `logits`, and the mean `loss` where labels are given.

    It is the squared error where these are floats, else the cross-entropy of the last dimension.
    """
    if labels is None:
        return {"logits": logits}
    if labels.is_floating_point():
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}
    return {
        "loss": nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten()),
        "logits": logits,
    }


def accuracy(outputs: Any) -> dict[str, float]:
    """A Trainer's metrics of classes: the share of all labels that the largest logit hits."""
    return {"accuracy": float((outputs.predictions.argmax(-1) == outputs.label_ids).mean())}


def folder_of(data_dir: str | None, what: str) -> Path:
    """`data_dir` as a path; a UsageError, which says that it should hold `what`, if it is none."""
    if not data_dir:
        raise UsageError(f"--data_dir is missing: give the folder that holds {what}")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise UsageError(f"--data_dir {data_dir}: no such folder; it should hold {what}")
    return folder
