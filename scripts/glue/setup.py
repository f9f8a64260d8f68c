"""From arguments to everything that a training loop needs, the cheap checks first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from datasets import Dataset
from torch import distributed
from torch.distributed import distributed_c10d
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.integrations import (
    get_reporting_integration_callbacks,
    is_deepspeed_zero3_enabled,
)
from transformers.trainer_pt_utils import get_model_param_count
from transformers.utils import logging

from glue.checkpoints import check_script, forget_later, steps_done
from glue.data import ax_of, load_splits
from glue.errors import UsageError, one_line
from glue.identity import fingerprint, identity
from glue.leftovers import (
    check_evaluated,
    check_source,
    remove_figures,
    remove_results,
    set_aside_damaged,
)
from glue.lock import exclusive
from glue.lora import add_lora, check_lora
from glue.metrics import names_of
from glue.model import check_vocabulary, label_order, load_config, load_model, load_tokenizer
from glue.optim import check_optimizer
from glue.output import check_machines, check_output, clear_write_errors
from glue.own import own_task
from glue.parsing import Arguments
from glue.preprocess import tokenize
from glue.ranges import check_numbers
from glue.record import (
    check_same_run,
    checkpoint_to_resume,
    differences,
    is_complete,
    read_record,
    write_record,
)
from glue.tasks import Task, get_task


@dataclass
class PreparedRun:
    """A task with its tokenized splits, model and tokenizer, ready to train.

    `order` is the model's number of each class of the task, where they differ.
    `checkpoint` is where training goes on from, if anywhere; `folder` takes all results; `record`
    says which run it is; `begun` whether its training has; `complete` whether its training's
    results were all there when it was about to; `writes` whether this rank is the one that writes
    the folder's files.
    """

    task: Task
    splits: dict[str, Dataset]
    tokenizer: PreTrainedTokenizerBase
    model: Any
    order: tuple[int, ...] | None
    checkpoint: Path | None
    folder: Path
    record: dict[str, Any]
    writes: bool
    begun: bool = False
    complete: bool = False

    def begin(self, total: int) -> bool:
        """Training is about to start: every rank calls it when all is loaded.

        Args:
            total: the number of steps at its end.

        Returns:
            Whether a step is left. If so, the folder is from now on this run's.

        Raises:
            UsageError: if the ranks go on from different checkpoints.
        """
        done = steps_done(self.checkpoint)
        complete = self.checkpoint is not None and is_complete(self.folder, self.record, done)
        found = gather_object([(done, complete)])
        if len({steps for steps, _ in found}) > 1:
            raise UsageError(
                f"--output_dir {self.folder}: the ranks find checkpoints of different steps "
                f"({[steps for steps, _ in found]}); copy the folder to every machine, or share it"
            )
        self.begun, self.complete = True, found[0][1]
        if self.checkpoint is not None and done >= total:
            if PartialState().is_main_process:
                print("The checkpoint is the run's end; --overwrite_output_dir trains it afresh")
            return False
        if self.writes:
            forget_later(self.folder, done)
            if self.checkpoint is None or differences(read_record(self.folder) or {}, self.record):
                remove_results(self.folder)
            write_record(self.folder, self.record)
        return True

    def end(self, steps: int) -> None:
        """All that training leaves is written: every rank calls it."""
        PartialState().wait_for_everyone()
        if self.writes:
            if hasattr(self.model, "peft_config"):
                self.model.config.save_pretrained(self.folder)  # an adapter has no place for labels
            write_record(self.folder, self.record, steps)

    @property
    def train(self) -> Dataset:
        """The training split."""
        return self.splits[self.task.train]

    def evaluations(self) -> list[tuple[str, str]]:
        """(split, suffix of its metrics' names); MNLI's mismatched set has `_mm`."""
        return list(zip(self.task.validation, ("", "_mm"), strict=False))

    def predictions(self) -> list[tuple[str, Task, str]]:
        """(split, its task, its submission file)."""
        names = zip(self.task.test, self.task.submission, strict=True)
        files = [(split, self.task, name) for split, name in names]
        if "ax" in self.splits:
            files.append(("ax", get_task("ax"), get_task("ax").submission[0]))
        return files


@contextlib.contextmanager
def prepare(args: Arguments, script: str) -> Iterator[PreparedRun]:
    """Check everything that needs no model, then load data, tokenizer and model.

    `script` is the name of the one that trains: the two do not read each other's checkpoints. The
    folder is the run's own inside the context: no other run gets it before the end.

    Raises:
        UsageError: the first thing that is wrong.
    """
    training = args.training
    task = _checked_task(args)
    folder = check_output(training.output_dir)
    training.process_index  # noqa: B018 - reading it is what starts the process group
    if training.use_cpu and distributed.is_initialized():  # transformers drops the timeout there
        distributed_c10d._set_pg_timeout(training.ddp_timeout_delta)
    logging.set_verbosity(training.get_process_log_level())
    check_machines(training, folder)
    with exclusive(folder), clear_write_errors(folder):
        record = identity(args, script, task)
        check_source(args, folder)
        check_evaluated(args, folder, task)
        check_same_run(training, folder, record)
        checkpoint = checkpoint_to_resume(training, folder)
        steps_done(checkpoint)  # raises, before data are loaded, where its state cannot be read
        check_script(checkpoint, script)
        if training.should_save:
            set_aside_damaged(folder)
        run = _load(args, task, checkpoint, folder, record)
        if training.do_train:
            record["training_data"] = fingerprint(run.train)
            check_same_run(training, folder, record)
        elif training.do_eval and training.should_save:
            remove_figures(folder)
        if checkpoint is not None and training.process_index == 0:
            print(f"Resuming from {checkpoint}; --overwrite_output_dir starts afresh")
        yield run


def _checked_task(args: Arguments) -> Task:
    training, data = args.training, args.data
    if not (training.do_train or training.do_eval or training.do_predict):
        raise UsageError("nothing to do: give --do_train, --do_eval or --do_predict")
    task = own_task(training, data) or get_task(data.task_name)
    check_numbers(training, data, args.lora, args.report)
    if data.use_sample and data.data_dir:
        raise UsageError("--use_sample and --data_dir exclude each other")
    if training.do_eval and not task.validation and not training.do_train:
        raise UsageError(f"--do_eval: {task.name} has no labelled data; use --do_predict")
    asked = " ".join(training.report_to or [])
    with one_line(ValueError, RuntimeError, ImportError, of=f"--report_to {asked}: "):
        for tracker in get_reporting_integration_callbacks(training.report_to):
            tracker()  # tells whether its package is there
    if training.eval_on_start and not training.do_eval:
        raise UsageError("--eval_on_start needs --do_eval")
    for name in ("batch_eval_metrics", "prediction_loss_only", "eval_do_concat_batches"):
        if getattr(training, name) != (name == "eval_do_concat_batches"):
            raise UsageError(f"--{name}: metrics need the outputs of all batches; leave it out")
    sharded = training.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if args.lora.merge_adapter and (sharded or is_deepspeed_zero3_enabled()):
        raise UsageError(
            "--merge_adapter: the weights are sharded; leave it out, and give it afterwards to one "
            "process with --do_eval and --adapter_name_or_path OUTPUT_DIR"
        )
    check_lora(args.lora, args.given)
    return task


def _load(
    args: Arguments, task: Task, checkpoint: Path | None, folder: Path, record: dict[str, Any]
) -> PreparedRun:
    training, data = args.training, args.data
    check_optimizer(training)
    tokenizer = load_tokenizer(args.model, data)
    config = load_config(args.model, data, args.lora.adapter_name_or_path)
    task, raw = load_splits(
        task,
        data,
        train=training.do_train,
        validation=training.do_eval,
        test=training.do_predict,
        cache_dir=args.model.cache_dir,
        config=config,
    )
    if training.do_predict and task.name == "mnli":
        ax = ax_of(data, args.model.cache_dir)
        raw |= {"ax": ax} if ax is not None else {}
    if training.do_train:
        _check_batch(training, len(raw[task.train]))
    _check_metrics(training, task, raw)
    set_seed(training.seed)  # the new head's weights, or all of them
    model: Any = load_model(args.model, config, task)
    order = label_order(model.config, task)
    splits = tokenize(raw, task, tokenizer, data, order, args.model.cache_dir)
    check_vocabulary(model, tokenizer, splits)
    if args.lora.enabled:
        model = add_lora(model, args.lora)
    if training.process_index == 0:
        if task.own:
            print("Labels:", ", ".join(task.labels) or "numbers (--do_regression false: classes)")
        trained, every = (get_model_param_count(model, only) for only in (True, False))
        print(f"Trainable parameters: {trained:,} of {every:,} ({trained / every:.2%})")
    writes = training.should_save
    return PreparedRun(task, splits, tokenizer, model, order, checkpoint, folder, record, writes)


def _check_batch(training: TrainingArguments, examples: int) -> None:
    """Raise a UsageError where no batch would be full, and so none is left to train on."""
    least = training.train_batch_size * training.world_size
    if training.dataloader_drop_last and examples < least:
        raise UsageError(
            f"--dataloader_drop_last: drops all {examples} training examples, as one batch of all "
            f"ranks has {least}; leave it out, or lower --per_device_train_batch_size "
            f"{training.per_device_train_batch_size}"
        )


def _check_metrics(training: TrainingArguments, task: Task, splits: dict[str, Dataset]) -> None:
    """Raise a UsageError for what an evaluation, after hours perhaps, could not compute."""
    names = ["loss", *names_of(task)]
    wanted = training.metric_for_best_model
    if wanted is not None and wanted.removeprefix("eval_") not in names:
        raise UsageError(f"--metric_for_best_model {wanted}: choose from {', '.join(names)}")
    for split in task.validation:
        if task.is_regression and split in splits and len(splits[split]) < 2:
            raise UsageError(
                f"--do_eval: the {split} split has one example, and a correlation needs two or "
                "more; see --max_eval_samples"
            )
