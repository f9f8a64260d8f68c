"""One run with the Hugging Face Trainer: any contender, every loss kept, long runs resumable."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast
from unittest.mock import patch

import torch
from glue.checkpoints import WholeCheckpointTrainer, checkpoints
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from experiments.broken import broken
from experiments.contenders import Contender, get_contender
from experiments.recording import Recorder
from experiments.workload import Job, TrainerWorkload

SAVE_STEPS = 1000
"""A run saves itself after each of so many steps, and goes on from there; shorter ones do not."""


def train(
    workload: TrainerWorkload,
    job: Job,
    contender: str,
    settings: Mapping[str, Any],
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Train on one device and return the result that `Workload.run` describes.

    The settings are complete. What the same run has saved in the folder is where it goes on.
    """
    steps, rule = workload.steps, get_contender(contender)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=workload.batch_size,
        per_device_eval_batch_size=job.eval_batch_size,
        learning_rate=settings["lr"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=0.0 if rule.clips else job.max_grad_norm,
        bf16=workload.bf16,
        use_cpu=workload.bf16 and not torch.cuda.is_available(),  # it has to be told so
        seed=seed,
        eval_strategy="steps",
        eval_steps=max(1, math.ceil(steps / max(1, workload.evaluations))),
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
    own = rule.arguments(settings, steps)
    own.pop("weight_decay")  # the Trainer's groups have it: none for biases and norms
    breaks = partial(broken, share=workload.broken, classes=job.classes, seed=seed)
    trainer = _Trainer(
        job, breaks, arguments, rule, optimizer_cls_and_kwargs=(resolve_name(rule.path), own)
    )
    optimizer = trainer.create_optimizer()
    if rule.needs_loss:
        optimizer.register_step_pre_hook(
            lambda _, args, named: (args, {**named, "loss": trainer.loss})
        )
    trainer.lr_scheduler = rule.scheduler(optimizer, settings, steps)
    kept = checkpoints(folder)
    trainer.train(resume_from_checkpoint=str(kept[-1]) if kept else None)
    return trainer.recorder.result(trainer.seconds())


class _Collate:
    """The training's collate, with `breaks` after it: see `broken`.

    It keeps how many batches it made, and the random state before the last of them.

    Accelerate makes each batch one step ahead. A run that goes on makes the batch after its
    checkpoint again, from the state before it, and all others from the state at the checkpoint:
    the two states in `again`.
    """

    def __init__(self, collate: Callable[[Any], Any], breaks: Callable[..., Any]) -> None:
        self.collate, self.breaks = collate, breaks
        self.made, self.before = 0, torch.get_rng_state()
        self.again: tuple[Tensor, Tensor] | None = None

    def __call__(self, examples: Any) -> Any:
        again, self.again = self.again, None
        if again:
            torch.set_rng_state(again[0])
        self.before = torch.get_rng_state()
        batch = self.breaks(self.collate(examples), self.made)
        self.made += 1
        if again:
            torch.set_rng_state(again[1])
        return batch


class _Trainer(WholeCheckpointTrainer):
    """The Trainer with a recorder of every step, which its checkpoints hold, too."""

    def __init__(
        self,
        job: Job,
        breaks: Callable[..., Any],
        arguments: TrainingArguments,
        rule: Contender,
        **options: Any,
    ) -> None:
        self.job, self.rule, self.collate = job, rule, _Collate(job.collate, breaks)
        super().__init__(
            model=job.model,
            args=arguments,
            train_dataset=job.train,
            eval_dataset=job.evaluation,
            data_collator=self.collate,
            compute_metrics=job.compute_metrics,
            **options,
        )
        self.recorder, self.ahead = Recorder(arguments.max_steps), False
        self.started, self.evaluation_seconds = time.perf_counter(), 0.0
        self.loss = torch.tensor(math.nan)
        self.remove_callback(PrinterCallback)
        self.add_callback(_Record(self))

    def seconds(self) -> float:
        """Of training, without evaluation."""
        return time.perf_counter() - self.started - self.evaluation_seconds

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.loss = super().training_step(*args, **kwargs).detach()
        return self.loss

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        collate = self.job.collate_evaluation or self.job.collate
        with patch.object(self, "data_collator", collate):
            return super().get_eval_dataloader(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        started = time.perf_counter()
        if self.rule.schedule_free:
            self._measure_batch_norms()
        metrics = super().evaluate(*args, **kwargs)
        bare = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        for name in ("runtime", "samples_per_second", "steps_per_second", "epoch"):
            bare.pop(name, None)
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
            size = self.args.per_device_train_batch_size
            loader: Any = DataLoader(
                self.job.train, size, shuffle=True, collate_fn=self.job.collate
            )
            optimizer.eval()
            model.train()
            for batch in itertools.islice(loader, batches):
                model(**self._prepare_inputs(batch))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        state = state_dict or self.job.model.state_dict()  # safetensors refuses other strides
        super()._save(output_dir, {name: value.contiguous() for name, value in state.items()})

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        step, ahead = self.state.global_step, self.collate.made > self.state.global_step
        values = {
            "step": step,
            "recorder": vars(self.recorder),
            "seconds": self.seconds(),
            "batches": (self.collate.before, torch.get_rng_state()) if ahead else None,
        }
        torch.save(values, Path(output_dir) / "record.pt")

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(checkpoint, model)
        values = torch.load(Path(checkpoint) / "record.pt", weights_only=True)
        vars(self.recorder).update(values["recorder"])
        self.collate.made, self.collate.again = values["step"], values["batches"]
        self.ahead = values["batches"] is not None
        self.started -= values["seconds"]

    def _load_rng_state(self, checkpoint: Any) -> None:
        kept = torch.get_rng_state()
        super()._load_rng_state(checkpoint)
        if self.ahead:  # the batches that were made since go on from it
            torch.set_rng_state(kept)


class _Record(TrainerCallback):
    """Hands each step's loss to the recorder, and ends a run that diverged."""

    def __init__(self, trainer: _Trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        goes_on = self.trainer.recorder.step(self.trainer.loss.item(), kwargs["optimizer"])
        if control.should_training_stop or not goes_on:  # the result follows
            control.should_training_stop, control.should_save = True, False
            control.should_evaluate = goes_on  # which older Trainers leave out at the end
        return control
