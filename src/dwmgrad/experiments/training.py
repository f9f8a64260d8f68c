"""One run with the Hugging Face Trainer: any contender, every loss kept, no file written."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from dwmgrad.experiments.contenders import Contender, get_contender
from dwmgrad.experiments.recording import Recorder
from dwmgrad.experiments.schedules import make_schedule


@dataclass
class Job:
    """What a Trainer needs, made after the seed was set.

    Attributes:
        model: gives a loss when it is called with a batch's names.
        train, evaluation: the data sets.
        collate: examples to a batch in training.
        collate_evaluation: the same in evaluation, where it differs.
        compute_metrics: the Trainer's; None where the loss is enough.
        score: the score, from all metrics by their bare names (`loss` among them).
    """

    model: nn.Module
    train: Any
    evaluation: Any
    collate: Any
    score: Callable[[Mapping[str, float]], float]
    compute_metrics: Callable[[Any], dict[str, float]] | None = None
    collate_evaluation: Any = None


def train(
    job: Job,
    contender: str,
    settings: Mapping[str, Any],
    seed: int,
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    eval_batch_size: int = 256,
    evaluations: int = 5,
    max_grad_norm: float = 1.0,
) -> dict[str, Any]:
    """Train on one device and return the result that `Workload.run` describes.

    Args:
        job: model and data.
        contender, settings, seed, folder: as for `Workload.run`, settings complete.
        steps: the budget.
        batch_size, eval_batch_size: examples per batch.
        evaluations: how often the score is taken, evenly spread; the last is at the end.
        max_grad_norm: the Trainer's gradient clipping; 0 for none.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=eval_batch_size,
        learning_rate=settings["lr"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=max_grad_norm,
        seed=seed,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = _Trainer(
        job, get_contender(contender), settings, evaluations, model=job.model, args=arguments,
        train_dataset=job.train, eval_dataset=job.evaluation, data_collator=job.collate,
        compute_metrics=job.compute_metrics,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started - trainer.evaluation_seconds
    return trainer.recorder.result(seconds)


class _Trainer(Trainer):
    """The Trainer with a contender's optimizer and schedule and a recorder of every step."""

    def __init__(
        self, job: Job, contender: Contender, settings: Mapping[str, Any], evaluations: int,
        **options: Any,
    ) -> None:  # fmt: skip
        steps = options["args"].max_steps
        own = contender.arguments(settings, steps)
        own.pop("weight_decay")  # the Trainer's groups have it: none for biases and norms
        super().__init__(**options, optimizer_cls_and_kwargs=(contender.load(), own))
        self.job = job
        self.contender, self.settings = contender, settings
        self.recorder = Recorder(steps)
        self.evaluation_seconds = 0.0
        self.loss: torch.Tensor | None = None
        self.remove_callback(PrinterCallback)
        self.add_callback(_Record(self, evaluations))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            name, warmup = self.contender.schedule(self.settings, num_training_steps)
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = make_schedule(chosen, name, warmup, num_training_steps)
        return self.lr_scheduler

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.loss = super().training_step(*args, **kwargs).detach()
        return self.loss

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        kept = self.data_collator
        self.data_collator = self.job.collate_evaluation or kept
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator = kept

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        started = time.perf_counter()
        if self.contender.schedule_free:
            self._measure_batch_norms()
        metrics = super().evaluate(*args, **kwargs)
        bare = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        timing = ("runtime", "samples_per_second", "steps_per_second", "epoch")
        bare = {name: value for name, value in bare.items() if name not in timing}
        self.recorder.evaluated(self.job.score(bare), bare)
        self.evaluation_seconds += time.perf_counter() - started
        return metrics

    @torch.no_grad()
    def _measure_batch_norms(self, batches: int = 50) -> None:
        """Batch statistics at the averaged weights, as schedulefree's README asks for."""
        model, optimizer = self.job.model, cast(Any, self.optimizer)
        if not any(isinstance(module, _BatchNorm) for module in model.modules()):
            return
        with torch.random.fork_rng():  # dropout and data order go on as if this were not here
            loader: Any = DataLoader(
                self.job.train, self.args.per_device_train_batch_size, shuffle=True,
                collate_fn=self.job.collate,
            )  # fmt: skip
            optimizer.eval()
            model.train()
            for batch in itertools.islice(loader, batches):
                model(**self._prepare_inputs(batch))


class _Record(TrainerCallback):
    """Hands each step's loss to the recorder, asks for evaluations, stops what diverged."""

    def __init__(self, trainer: _Trainer, evaluations: int) -> None:
        self.trainer = trainer
        self.every = max(1, math.ceil(trainer.args.max_steps / max(1, evaluations)))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        loss = self.trainer.loss
        assert loss is not None
        if not self.trainer.recorder.step(loss.item(), kwargs["optimizer"]):
            control.should_training_stop = True
        elif state.global_step % self.every == 0 or state.global_step == args.max_steps:
            control.should_evaluate = True
        return control
