"""Fine-tune a model on GLUE or one's own data with a bare Accelerate loop, to read and to change.

    python scripts/run_glue_no_trainer.py configs/demo.yaml
    accelerate launch scripts/run_glue_no_trainer.py configs/glue/mrpc.yaml \\
        --model_name_or_path roberta-base

It takes the arguments and files of run_glue.py, and says which ones it cannot honour.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glue.errors import needs, run_cli

with needs("glue"):
    import numpy as np
    import torch
    from accelerate import Accelerator
    from glue.bare import State, check_honoured, loader, train_sampler
    from glue.card import report
    from glue.checkpoints import begin, finish, unusable
    from glue.lora import save_merged
    from glue.metrics import mean_loss, predictions_of, score, write_submissions
    from glue.optim import build_optimizer
    from glue.parsing import parse
    from glue.preprocess import collator
    from glue.record import write_json
    from glue.setup import PreparedRun, prepare
    from transformers import enable_full_determinism, get_scheduler
    from transformers.trainer_callback import (
        CallbackHandler,
        DefaultFlowCallback,
        PrinterCallback,
        ProgressCallback,
        TrainerControl,
    )
    from transformers.trainer_utils import speed_metrics

    import dwmgrad
    from dwmgrad.integrations.callback import DWMGradCallback, RanksAgreeCallback


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run what `argv` (default: the command line) asks for; return all_results.json's content."""
    dwmgrad.register()
    args = parse(argv, __doc__)
    check_honoured(args.training, args.given)
    if args.training.full_determinism:
        enable_full_determinism(args.training.seed)
    with prepare(args, "run_glue_no_trainer.py") as run:
        return Loop(run, args).run()


class Loop:
    """One run: the accelerator, the model on it, and what has been reached so far."""

    def __init__(self, run: PreparedRun, args: Any) -> None:
        self.job, self.args, self.training = run, args, args.training
        self.folder = run.folder
        self.collate = collator(run.tokenizer, args.data.pad_to_max_length, self.training.fp16)
        precision = [name for name in ("bf16", "fp16") if getattr(self.training, name)]
        self.accelerator = Accelerator(
            cpu=self.training.use_cpu,
            mixed_precision=precision[0] if precision else None,
            gradient_accumulation_steps=self.training.gradient_accumulation_steps,
        )
        self.state, self.control = State(), TrainerControl()
        self.loaders: dict[str, Any] = {}  # of the splits to evaluate or predict
        self.model: Any = run.model
        self.norm: Any = None  # of the last gradients, where they were clipped
        if self.training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()

    def run(self) -> dict[str, float]:
        results: dict[str, float] = {}
        saved: dict[str, Path | str] = {"saved in": self.folder}
        if self.training.do_train:
            results.update(self.train())
        else:
            self.model = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        if self.args.lora.merge_adapter and self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            saved["merged model"] = save_merged(model, self.job.tokenizer, self.folder)
        if self.training.do_eval:
            results.update(self.save_metrics("eval", self.evaluate()))
        if self.training.do_predict:
            saved["predictions"] = write_submissions(
                self.job, lambda split: self.outputs(split)[0], self.accelerator.is_main_process
            )
        path = self.folder / "all_results.json"
        if self.accelerator.is_main_process:
            write_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), **results})
            report(self.args, self.job, results, saved)
        # not end_training(): gloo may hang where the group goes before the DDP model (torch 2.5)
        self.accelerator.wait_for_everyone()
        return results

    def train(self) -> dict[str, float]:
        training, accelerator, data = self.training, self.accelerator, self.job.train
        self.sampler = train_sampler(data, training, accelerator.num_processes)
        self.model, self.optimizer, self.batches = accelerator.prepare(
            self.model,
            build_optimizer(self.model, training, self.args.lora.loraplus_lr_ratio),
            loader(data, training, self.collate, self.sampler),
        )
        self.per_epoch = math.ceil(len(self.batches) / training.gradient_accumulation_steps)
        total = training.max_steps
        if total <= 0:
            total = math.ceil(training.num_train_epochs * self.per_epoch)
        self.scheduler = get_scheduler(
            training.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=training.get_warmup_steps(total),
            num_training_steps=total,
            scheduler_specific_kwargs=training.lr_scheduler_kwargs or {},
        )
        accelerator.register_for_checkpointing(self.scheduler)
        if self.job.checkpoint is not None:
            try:
                path = self.job.checkpoint / "trainer_state.json"
                self.state = State.load_from_json(str(path))
                accelerator.load_state(str(self.job.checkpoint))
            except Exception as error:
                raise unusable(self.job.checkpoint, error) from error
        if not self.job.begin(total):
            if not self.job.complete:
                self.save_all()
            return {}
        self.state.plan(total, training)
        self.state.is_local_process_zero = accelerator.is_local_main_process
        self.state.is_world_process_zero = accelerator.is_main_process
        first_step, start = self.state.global_step, time.time()
        self.steps()
        steps = self.state.global_step - first_step
        metrics = speed_metrics("train", start, steps / self.per_epoch * len(data), steps)
        metrics["train_loss"] = self.state.loss_total / max(self.state.global_step, 1)
        metrics["train_samples"] = len(data)
        self.state.log(**metrics)
        metrics["epoch"] = self.state.epoch
        self.save_metrics("train", metrics)
        self.save_all()
        return metrics

    def steps(self) -> None:
        """All optimizer steps that are left; the Trainer's callbacks say what comes after each."""
        training, state, accelerator = self.training, self.state, self.accelerator
        every = self.args.report.check_ranks_steps
        shown = PrinterCallback if training.disable_tqdm else ProgressCallback
        callbacks = [DefaultFlowCallback(), DWMGradCallback(), shown()]
        callbacks += [RanksAgreeCallback(every)] if every else []
        self.flow = CallbackHandler(
            callbacks, self.model, self.job.tokenizer, self.optimizer, self.scheduler
        )
        self.flow.on_train_begin(training, state, self.control)
        seed = training.seed if training.data_seed is None else training.data_seed
        while state.global_step < state.max_steps:
            epoch, first = divmod(state.global_step, self.per_epoch)
            if hasattr(self.sampler, "generator"):
                self.sampler.generator.manual_seed(seed * 1_000_003 + epoch)
            first *= training.gradient_accumulation_steps
            rest = accelerator.skip_first_batches(self.batches, first) if first else self.batches
            losses: list[torch.Tensor] = []
            for done, batch in enumerate(rest, first + 1):
                losses.append(self.forward_backward(batch))
                if accelerator.sync_gradients:
                    state.global_step += 1
                    state.epoch = epoch + done / len(self.batches)
                    self.after_step(torch.stack(losses).mean(), done == len(self.batches))
                    losses = []
                if state.global_step >= state.max_steps:
                    break
        self.flow.on_train_end(training, state, self.control)

    def forward_backward(self, batch: Any) -> torch.Tensor:
        """One batch, with an optimizer step if its gradients are the last to be accumulated."""
        accelerator, limit = self.accelerator, self.training.max_grad_norm
        self.model.train()
        with accelerator.accumulate(self.model):
            loss = self.model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients and limit > 0:
                self.norm = accelerator.clip_grad_norm_(self.model.parameters(), limit)
            self.optimizer.step()
            if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                self.scheduler.step()
            self.optimizer.zero_grad()
        return loss.detach().float()

    def after_step(self, loss: torch.Tensor, epoch_ended: bool) -> None:
        """Log, evaluate and save where it is time to."""
        accelerator, state, training = self.accelerator, self.state, self.training
        mean = accelerator.reduce(loss, "mean").item()
        state.loss_since_log += mean
        state.loss_total += mean
        state.steps_since_log += 1
        self.flow.on_step_begin(training, state, self.control)  # forgets the last step's
        self.flow.on_step_end(training, state, self.control)
        if epoch_ended or self.control.should_training_stop:
            self.flow.on_epoch_end(training, state, self.control)
        if self.control.should_log:
            entry = {"loss": state.loss_since_log / state.steps_since_log}
            entry["learning_rate"] = self.scheduler.get_last_lr()[0]
            if self.norm is not None:
                entry["grad_norm"] = float(self.norm)
            state.loss_since_log, state.steps_since_log = 0.0, 0
            self.flow.on_log(training, state, self.control, state.log(**entry))
        if self.control.should_evaluate and training.do_eval:
            entry = self.evaluate(first_only=True)
            self.flow.on_log(training, state, self.control, state.log(**entry))
        if self.control.should_save:
            folder = self.folder / f"checkpoint-{state.global_step}"
            begin(folder, accelerator.is_main_process)
            accelerator.save_state(str(folder))
            if accelerator.is_main_process:
                state.save_to_json(str(folder / "trainer_state.json"))
            finish(folder, accelerator.is_main_process, training.save_total_limit)

    def outputs(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The logits and labels (none in a test split) of a whole split, nothing counted twice."""
        data = self.job.splits[split]
        if split not in self.loaders:
            batches = loader(data, self.training, self.collate)
            self.loaders[split] = self.accelerator.prepare_data_loader(batches)
        self.model.eval()
        logits, labels = [], []
        for batch in self.loaders[split]:
            wanted = batch.pop("labels", None)
            with torch.no_grad():
                values = self.model(**batch).logits
            logits.append(self.accelerator.gather_for_metrics(values).float().cpu())
            if wanted is not None:
                labels.append(self.accelerator.gather_for_metrics(wanted).cpu())
        return torch.cat(logits).numpy(), torch.cat(labels or [torch.empty(0)]).numpy()

    def evaluate(self, first_only: bool = False) -> dict[str, float]:
        """Every validation split (`first_only`: MNLI's matched one alone)."""
        results: dict[str, float] = {}
        task = self.job.task
        for split, suffix in self.job.evaluations()[: 1 if first_only else None]:
            start = time.time()
            logits, labels = self.outputs(split)
            values = score(task, predictions_of(logits, task), labels, self.job.order)
            values |= {"loss": mean_loss(logits, labels), "samples": len(labels)}
            values = {f"eval_{name}": value for name, value in values.items()}
            values |= speed_metrics("eval", start, len(labels))
            results |= {name + suffix: value for name, value in values.items()}
        return results

    def save_all(self) -> None:
        """What training leaves beside its figures."""
        accelerator, model = self.accelerator, self.accelerator.unwrap_model(self.model)
        model.save_pretrained(
            self.folder,
            is_main_process=accelerator.is_main_process,
            save_function=accelerator.save,
            state_dict=accelerator.get_state_dict(self.model),
        )
        if accelerator.is_main_process:
            self.job.tokenizer.save_pretrained(self.folder)
            self.state.save_to_json(str(self.folder / "trainer_state.json"))
        self.job.end(self.state.global_step)

    def save_metrics(self, name: str, metrics: dict[str, float]) -> dict[str, float]:
        if self.accelerator.is_main_process:
            write_json(self.folder / f"{name}_results.json", metrics)
        return metrics


if __name__ == "__main__":
    run_cli(main)
