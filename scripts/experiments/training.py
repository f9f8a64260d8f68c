"""One run with the Hugging Face Trainer: any contender, every loss kept, long runs resumable."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from glue.checkpoints import WholeCheckpointTrainer, checkpoints, steps_done
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from experiments.contenders import Contender, get_contender
from experiments.files import write_json
from experiments.recording import Recorder
from experiments.schedules import make_schedule

SAVE_STEPS = 1000
"""A run saves itself after each of so many steps, and goes on from there; shorter ones do not."""


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
        contender, settings, seed, folder: as for `Workload.run`, settings complete. What the same
            run has saved in the folder is where it goes on.
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
        save_strategy="steps" if steps > SAVE_STEPS else "no",
        save_steps=SAVE_STEPS,
        save_total_limit=1,
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
    last = next(iter(checkpoints(folder)[::-1]), None)
    if last is not None:
        trainer.remember(steps_done(last))
    if steps_done(last) < steps:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer.recorder.result(trainer.seconds())


class _Collate:
    """The training's collate, whose random numbers a resumed run repeats.

    The loader makes each batch before the step of the one before it, and before the Trainer
    restores the random state: so the states are kept and set here.
    """

    def __init__(self, collate: Any) -> None:
        self.collate, self.made = collate, 0
        self.before = torch.get_rng_state()
        self.states: tuple[torch.Tensor, torch.Tensor] | None = None
        self.resumed = False

    def __call__(self, examples: Any) -> Any:
        first, self.states = self.states, None
        if first:
            torch.set_rng_state(first[0])
        self.made, self.before = self.made + 1, torch.get_rng_state()
        batch = self.collate(examples)
        if first:
            torch.set_rng_state(first[1])
        return batch

    def state(self, step: int) -> list[str] | None:
        """The random states before the batch beyond `step` batches, and now; None: no such yet."""
        states = (self.before, torch.get_rng_state())
        return [bytes(s.tolist()).hex() for s in states] if self.made > step else None

    def restore(self, step: int, states: list[str] | None) -> None:
        """Goes on after `step` batches from what `state` gave."""
        self.made, self.resumed = step, states is not None
        if states:
            before, now = (torch.tensor(list(bytes.fromhex(s)), dtype=torch.uint8) for s in states)
            self.states = before, now


class _Trainer(WholeCheckpointTrainer):
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
        self.recorder, self.collate = Recorder(steps), _Collate(job.collate)
        self.started, self.evaluation_seconds = time.perf_counter(), 0.0
        self.loss: torch.Tensor | None = None
        self.remove_callback(PrinterCallback)
        self.add_callback(_Record(self, evaluations))

    def seconds(self) -> float:
        """Of training, without evaluation."""
        return time.perf_counter() - self.started - self.evaluation_seconds

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # the record first: a checkpoint that counts has one
        step = self.state.global_step
        values = {"recorder": self.recorder.state(), "seconds": self.seconds(),
                  "random": self.collate.state(step)}  # fmt: skip
        write_json(self._record(step), values)
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        state = self.job.model.state_dict()
        if not all(value.is_contiguous() for value in state.values()):  # safetensors refuses them
            state_dict = {name: value.contiguous() for name, value in state.items()}
        super()._save(output_dir, state_dict)

    def remember(self, step: int) -> None:
        """The record of what was done up to a checkpoint."""
        values = json.loads(self._record(step).read_text(encoding="utf-8"))
        self.recorder.restore(values["recorder"])
        self.collate.restore(step, values["random"])
        self.started -= values["seconds"]

    def _record(self, step: int) -> Path:
        return Path(str(self.args.output_dir)) / f"record-{step}.json"

    def _load_rng_state(self, checkpoint: Any) -> None:
        kept = torch.get_rng_state()
        super()._load_rng_state(checkpoint)
        if self.collate.resumed:  # whose batches were made from it
            torch.set_rng_state(kept)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            name, warmup = self.contender.schedule(self.settings, num_training_steps)
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = make_schedule(chosen, name, warmup, num_training_steps)
        return self.lr_scheduler

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.loss = super().training_step(*args, **kwargs).detach()
        return self.loss

    def get_train_dataloader(self) -> Any:
        self.data_collator = self.collate
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = self.job.collate

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
