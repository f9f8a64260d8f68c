"""From arguments to everything that a training loop needs, the cheap checks first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from dwmgrad.glue.checkpoints import forget_later, steps_done
from dwmgrad.glue.data import ax_of, load_splits
from dwmgrad.glue.errors import UsageError
from dwmgrad.glue.lora import add_lora, check_lora, print_trainable
from dwmgrad.glue.model import label_order, load_model, load_tokenizer
from dwmgrad.glue.optim import check_optimizer
from dwmgrad.glue.output import check_output, checkpoint_to_resume, identity, write_record
from dwmgrad.glue.parsing import Arguments
from dwmgrad.glue.preprocess import tokenize
from dwmgrad.glue.tasks import Task, get_task


@dataclass
class Run:
    """A task with its tokenized splits, model and tokenizer, ready to train.

    `order` is the model's number of each class of the task, where they differ.
    `checkpoint` is where training goes on from, if anywhere; `folder` takes all results; `record`
    says which run it is.
    """

    task: Task
    splits: dict[str, Dataset]
    tokenizer: PreTrainedTokenizerBase
    model: Any
    order: tuple[int, ...] | None
    checkpoint: Path | None
    folder: Path
    record: dict[str, Any]

    def begin(self) -> None:
        """Training starts: every rank calls it when all is loaded.

        Raises:
            UsageError: if the ranks go on from different checkpoints.
        """
        state = PartialState()
        steps = torch.tensor([steps_done(self.checkpoint)], device=state.device)
        found = gather(steps).tolist()
        if len(set(found)) > 1:
            raise UsageError(
                f"--output_dir {self.folder}: the ranks find checkpoints of different steps "
                f"({found}); copy the folder to every machine, or share it"
            )
        if state.is_local_main_process:
            forget_later(self.folder, found[0])
            write_record(self.folder, self.record)

    @property
    def train(self) -> Dataset:
        """The training split."""
        return self.splits[self.task.train or ""]

    def evaluations(self) -> list[tuple[str, str]]:
        """(split, suffix of its metrics' names); MNLI's mismatched set has `_mm`."""
        return list(zip(self.task.validation, ("", "_mm"), strict=False))

    def predictions(self) -> list[tuple[str, Task, str]]:
        """(split, its task, its submission file)."""
        files = [
            (split, self.task, name)
            for split, name in zip(self.task.test, self.task.submission, strict=True)
        ]
        if "ax" in self.splits:
            files.append(("ax", get_task("ax"), get_task("ax").submission[0]))
        return files

    def in_task_order(self, predictions: np.ndarray) -> np.ndarray:
        """Class numbers of the model as class numbers of the task."""
        return predictions if self.order is None else np.argsort(self.order)[predictions]


def prepare(args: Arguments, script: str) -> Run:
    """Check everything that needs no model, then load data, tokenizer and model.

    `script` is the name of the one that trains: the two do not read each other's checkpoints.

    Raises:
        UsageError: the first thing that is wrong.
    """
    training, data = args.training, args.data
    if not (training.do_train or training.do_eval or training.do_predict):
        raise UsageError("nothing to do: give --do_train, --do_eval or --do_predict")
    if data.task_name is None:
        raise UsageError("--task_name is missing: cola, sst2, mrpc, stsb, qqp, mnli, ...")
    task = get_task(data.task_name)
    counts = {
        f"max_{n}_samples": getattr(data, f"max_{n}_samples") for n in ("train", "eval", "predict")
    }
    for name, value in {**counts, "check_ranks_steps": args.report.check_ranks_steps}.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: must be at least 1")
    if data.use_sample and data.data_dir:
        raise UsageError("--use_sample and --data_dir exclude each other")
    if training.do_eval and not task.validation and not training.do_train:
        raise UsageError(f"--do_eval: {task.name} has no labelled data; use --do_predict")
    check_lora(args.lora, args.given)
    folder = check_output(training.output_dir)
    record = identity(training, script)
    checkpoint = checkpoint_to_resume(training, folder, record)
    check_optimizer(training)
    tokenizer = load_tokenizer(args.model, data)
    raw = load_splits(
        task,
        data,
        train=training.do_train,
        validation=training.do_eval,
        test=training.do_predict,
        cache_dir=args.model.cache_dir,
    )
    if training.do_predict and task.name == "mnli":
        ax = ax_of(data, args.model.cache_dir)
        if ax is not None:
            raw["ax"] = ax
    set_seed(training.seed)  # the new head's weights, or all of them
    model: Any = load_model(args.model, data, task)
    order = label_order(model.config, task)
    splits = tokenize(raw, task, tokenizer, data, order)
    if args.lora.enabled:
        model = add_lora(model, args.lora)
    if training.process_index == 0:
        print_trainable(model)
    return Run(task, splits, tokenizer, model, order, checkpoint, folder, record)
