"""Fine-tune a model on GLUE or one's own data with the Hugging Face Trainer.

    python scripts/run_glue.py configs/demo.yaml
    python scripts/run_glue.py configs/glue/mrpc.yaml --model_name_or_path roberta-base
    python scripts/run_glue.py --task_name mrpc --model_name_or_path roberta-base \\
        --do_train --do_eval --optim dwmgrad_finetune --output_dir out
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from glue.errors import UsageError, needs, one_line, run_cli

with needs("glue"):
    import torch
    from glue.card import report
    from glue.checkpoints import WholeCheckpointTrainer, unusable
    from glue.lora import save_merged
    from glue.metrics import compute_metrics, write_submissions
    from glue.optim import build_optimizer
    from glue.parsing import Arguments, parse
    from glue.preprocess import collator
    from glue.setup import PreparedRun, prepare
    from transformers import Trainer, TrainerCallback
    from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

    import dwmgrad
    from dwmgrad.integrations.callback import RanksAgreeCallback


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run what `argv` (default: the command line) asks for; return all_results.json's content."""
    dwmgrad.register()
    args = parse(argv, __doc__)
    with prepare(args, "run_glue.py") as run:
        return work(args, run)


def work(args: Arguments, run: PreparedRun) -> dict[str, float]:
    training = args.training
    every = args.report.check_ranks_steps
    first = run.task.validation[0] if training.do_eval else None
    with one_line(ValueError, ImportError):
        trainer = GlueTrainer(
            loraplus_lr_ratio=args.lora.loraplus_lr_ratio,
            model=run.model,
            args=training,
            train_dataset=run.train if training.do_train else None,
            eval_dataset=run.splits[first] if first else None,
            compute_metrics=compute_metrics(run.task, run.order),
            data_collator=collator(run.tokenizer, args.data.pad_to_max_length, training.fp16),
            processing_class=run.tokenizer,
            callbacks=[Begin(run), *([RanksAgreeCallback(every)] if every else [])],
        )
    # Classification heads ignore num_items_in_batch: divide their losses and gradients as ever.
    trainer.model_accepts_loss_kwargs = False
    results: dict[str, float] = {}
    saved: dict[str, Path | str] = {"saved in": run.folder}
    if training.do_train:
        results.update(train(trainer, run))
    if args.lora.merge_adapter and trainer.is_world_process_zero():
        saved["merged model"] = save_merged(run.model, run.tokenizer, run.folder)
    if training.do_eval:
        results.update(evaluate(trainer, run))
    if training.do_predict:
        saved["predictions"] = write_submissions(
            run,
            lambda split: (
                trainer.predict(run.splits[split], metric_key_prefix="predict").predictions
            ),
            trainer.is_world_process_zero(),
        )
    if trainer.is_world_process_zero():
        report(args, run, results, saved)
    if training.push_to_hub:
        of = f"--push_to_hub: {run.folder} is whole, but not uploaded: "
        with patch.object(trainer, "save_model"), one_line(Exception, of=of):  # it is saved
            trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # a rank that ends at once may abort: docs/backends.md
    return results


class GlueTrainer(WholeCheckpointTrainer):
    """The Trainer, with LoRA+, all rows in evaluation, and the card that `report` writes."""

    def __init__(self, *, loraplus_lr_ratio: float | None, **options: Any) -> None:
        super().__init__(**options)
        self.loraplus_lr_ratio = loraplus_lr_ratio

    def get_eval_dataloader(self, *data: Any) -> Any:
        with patch.object(self.args, "dataloader_drop_last", False):  # that is for training alone
            return super().get_eval_dataloader(*data)

    def get_test_dataloader(self, *data: Any) -> Any:
        with patch.object(self.args, "dataloader_drop_last", False):
            return super().get_test_dataloader(*data)

    def create_optimizer(self, *model: Any) -> torch.optim.Optimizer:
        if self.optimizer is None and self.loraplus_lr_ratio is not None:
            [target] = model or [self.model]  # FSDP2's shards
            self.optimizer = build_optimizer(target, self.args, self.loraplus_lr_ratio)
        return super().create_optimizer(*model)

    def init_hf_repo(self, *args: Any, **options: Any) -> None:
        with one_line(Exception, of="--push_to_hub: "):  # the hub's client raises a dozen kinds
            super().init_hf_repo(*args, **options)

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Each push would write another one."""


class AtItsEnd(Exception):
    """The checkpoint is the run's end."""


class Begin(TrainerCallback):
    """Leaves the run's record once its model, and its checkpoint if any, are loaded."""

    def __init__(self, run: PreparedRun) -> None:
        self.run = run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.run.begin(state.max_steps):
            raise AtItsEnd  # the Trainer looks only after a step whether it was the last


def train(trainer: Trainer, run: PreparedRun) -> dict[str, float]:
    try:
        checkpoint = str(run.checkpoint) if run.checkpoint else None
        with one_line(ImportError):  # of what an argument needs, as --use_liger_kernel
            metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    except AtItsEnd:
        return at_its_end(trainer, run)
    except UsageError:
        raise
    except Exception as error:
        if run.checkpoint is None or run.begun:
            raise
        raise unusable(run.checkpoint, error) from error
    metrics["train_samples"] = len(run.train)
    trainer.save_model(_internal_call=True)  # without an upload, which may fail
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    run.end(trainer.state.global_step)
    return metrics


def at_its_end(trainer: Trainer, run: PreparedRun) -> dict[str, float]:
    """What is left of training where no step is: the best weights, and what a kill kept back."""
    trainer.is_in_train = False
    if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None:
        trainer._load_best_model()
    bar = trainer.pop_callback(DEFAULT_PROGRESS_CALLBACK)  # which has not begun
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    if bar is not None:
        trainer.add_callback(bar)
    if not run.complete:
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        run.end(trainer.state.global_step)
    return {}


def evaluate(trainer: Trainer, run: PreparedRun) -> dict[str, float]:
    """Every validation split; MNLI's mismatched metrics get `_mm`, all go into one file."""
    combined: dict[str, float] = {}
    for split, suffix in run.evaluations():
        metrics = trainer.evaluate(eval_dataset=run.splits[split])
        metrics["eval_samples"] = len(run.splits[split])
        metrics = {name + suffix: value for name, value in metrics.items()}
        trainer.log_metrics("eval", metrics)
        combined.update(metrics)
    trainer.save_metrics("eval", combined)
    return combined


if __name__ == "__main__":
    run_cli(main)
