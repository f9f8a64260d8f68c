"""Fine-tune a model on a GLUE task with a bare Accelerate loop, to read and to change.

    python scripts/run_glue_no_trainer.py configs/demo.yaml
    accelerate launch scripts/run_glue_no_trainer.py configs/glue/mrpc.yaml \\
        --model_name_or_path roberta-base

It takes the arguments and files of run_glue.py, and says which ones it cannot honour.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glue.errors import needs, run_cli

with needs("glue"):
    import numpy as np
    import torch
    from accelerate import Accelerator
    from glue.bare import (
        Every,
        State,
        check_honoured,
        check_ranks,
        loader,
        train_sampler,
        window_of,
    )
    from glue.checkpoints import begin, finish, unusable
    from glue.lora import save_merged
    from glue.metrics import load_metric, mean_loss, predictions_of, score
    from glue.optim import build_optimizer
    from glue.output import NOTHING_LEFT, clear_write_errors, write_json
    from glue.parsing import parse
    from glue.preprocess import collator
    from glue.setup import Run, prepare
    from glue.submission import write_submission
    from glue.summary import plot, summary
    from tqdm.auto import tqdm
    from transformers import enable_full_determinism, get_scheduler

    import dwmgrad


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run what `argv` (default: the command line) asks for; return all_results.json's content."""
    dwmgrad.register()
    args = parse(argv, __doc__)
    check_honoured(args.training, args.given)
    if args.training.full_determinism:
        enable_full_determinism(args.training.seed)
    with prepare(args, "run_glue_no_trainer.py") as run, clear_write_errors(run.folder):
        return Loop(run, args).run()


class Loop:
    """One run: the accelerator, the model on it, and what has been reached so far."""

    def __init__(self, run: Run, args: Any) -> None:
        self.job, self.args, self.training = run, args, args.training
        self.folder = run.folder
        self.collate = collator(run.tokenizer, args.data.pad_to_max_length, self.training.fp16)
        self.accelerator = Accelerator(
            cpu=self.training.use_cpu,
            mixed_precision={(True, False): "bf16", (False, True): "fp16"}.get(
                (self.training.bf16, self.training.fp16)
            ),
            gradient_accumulation_steps=self.training.gradient_accumulation_steps,
        )
        self.metric = load_metric(run.task)
        self.state = State()
        self.loaders: dict[str, Any] = {}  # of the splits to evaluate or predict
        self.model: Any = run.model
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
            saved["submission"] = self.predict()
        path = self.folder / "all_results.json"
        if self.accelerator.is_main_process:
            write_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), **results})
            if self.training.do_train and self.args.report.plot:
                saved["plot"] = plot(self.folder)
            optimizer = getattr(self.training.optim, "value", self.training.optim)
            title = f"{self.job.task.name}, optimizer {optimizer}"
            print(summary(title, self.job.task, results, saved))
        # not end_training(): gloo may hang where the group goes before the DDP model (torch 2.5)
        self.accelerator.wait_for_everyone()
        return results

    def train(self) -> dict[str, float]:
        training, accelerator, state = self.training, self.accelerator, self.state
        data = self.job.train
        sampler = train_sampler(data, training, accelerator.num_processes)
        self.model, self.optimizer, batches = accelerator.prepare(
            self.model,
            build_optimizer(self.model, training),
            loader(data, training, self.collate, sampler),
        )
        per_epoch = math.ceil(len(batches) / training.gradient_accumulation_steps)
        total = training.max_steps
        if total <= 0:
            total = math.ceil(training.num_train_epochs * per_epoch)
        self.scheduler = get_scheduler(
            training.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=training.get_warmup_steps(total),
            num_training_steps=total,
            scheduler_specific_kwargs=training.lr_scheduler_kwargs or {},
        )
        accelerator.register_for_checkpointing(self.scheduler)
        self.logs = Every(training.logging_strategy, training.logging_steps, total)
        self.evaluates = Every(training.eval_strategy, training.eval_steps, total)
        self.saves = Every(training.save_strategy, training.save_steps, total)
        if self.job.checkpoint is not None:
            state = self.state = State.load(self.job.checkpoint)
            try:
                accelerator.load_state(str(self.job.checkpoint))
            except Exception as error:
                raise unusable(self.job.checkpoint, error) from error
        if not self.job.begin(total):
            print(NOTHING_LEFT)
            if not self.job.complete:
                self.save_all()
            return {}
        state.max_steps = total
        first_step, start = state.global_step, time.perf_counter()
        bar = tqdm(
            total=total,
            initial=first_step,
            disable=training.disable_tqdm or not accelerator.is_main_process,
        )
        for loss, norm, epoch_ended in self.steps(batches, sampler, per_epoch, total):
            bar.update()
            self.after_step(loss, norm, epoch_ended, bar)
        bar.close()
        seconds, steps = time.perf_counter() - start, state.global_step - first_step
        examples = steps / per_epoch * len(data)
        metrics = {
            "epoch": state.epoch,
            "train_loss": state.loss_total / max(state.global_step, 1),
            "train_runtime": seconds,
            "train_samples": len(data),
            "train_samples_per_second": examples / seconds,
            "train_steps_per_second": steps / seconds,
        }
        state.log(**{name: value for name, value in metrics.items() if name != "epoch"})
        self.save_metrics("train", metrics)
        self.save_all()
        return metrics

    def steps(
        self, batches: Any, sampler: Any, per_epoch: int, total: int
    ) -> Iterator[tuple[torch.Tensor, Any, bool]]:
        """Optimizer steps: their mean loss, the gradient's norm, and whether an epoch ended."""
        accelerator, state, training = self.accelerator, self.state, self.training
        while state.global_step < total:
            sampler.epoch = state.epoch_index
            rest = batches
            if state.batches_done:
                rest = accelerator.skip_first_batches(batches, state.batches_done)
            losses: list[torch.Tensor] = []
            for batch in rest:
                self.model.train()
                with accelerator.accumulate(self.model):
                    loss = self.model(**batch).loss
                    accelerator.backward(loss)
                    norm = None
                    if accelerator.sync_gradients and training.max_grad_norm > 0:
                        norm = accelerator.clip_grad_norm_(
                            self.model.parameters(), training.max_grad_norm
                        )
                    self.optimizer.step()
                    if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                        self.scheduler.step()
                    self.optimizer.zero_grad()
                losses.append(loss.detach().float())
                state.batches_done += 1
                if not accelerator.sync_gradients:
                    continue
                state.global_step += 1
                ended = state.batches_done >= len(batches)
                done = state.batches_done / len(batches)
                state.epoch = state.epoch_index + done
                if ended:
                    state.epoch_index, state.batches_done = state.epoch_index + 1, 0
                yield torch.stack(losses).mean(), norm, ended
                losses = []
                if state.global_step >= total:
                    return

    def after_step(self, loss: torch.Tensor, norm: Any, epoch_ended: bool, bar: Any) -> None:
        """Log, evaluate and save where it is time to."""
        accelerator, state, training = self.accelerator, self.state, self.training
        check_ranks(self.optimizer, state.global_step, self.args.report.check_ranks_steps)
        mean = accelerator.reduce(loss, "mean").item()
        state.loss_since_log += mean
        state.loss_total += mean
        state.steps_since_log += 1
        step, last = state.global_step, state.global_step == state.max_steps
        if self.logs(step, epoch_ended) or (training.logging_first_step and step == 1):
            entry = {
                "loss": state.loss_since_log / state.steps_since_log,
                "learning_rate": self.scheduler.get_last_lr()[0],
                **({"grad_norm": float(norm)} if norm is not None else {}),
                **window_of(self.optimizer),
            }
            state.loss_since_log, state.steps_since_log = 0.0, 0
            self.show(bar, state.log(**entry))
        if self.training.do_eval and self.evaluates(step, epoch_ended or last):
            self.show(bar, state.log(**self.evaluate(first_only=True)))
        if self.saves(step, epoch_ended) or (last and self.saves.strategy != "no"):
            folder = self.folder / f"checkpoint-{step}"
            begin(folder)
            accelerator.save_state(str(folder))
            if accelerator.is_main_process:
                state.save(folder)
            finish(folder, training.save_total_limit)

    def show(self, bar: Any, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            bar.write(
                str({k: round(v, 5) if isinstance(v, float) else v for k, v in entry.items()})
            )

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
            start = time.perf_counter()
            logits, labels = self.outputs(split)
            values = score(self.metric, predictions_of(logits, task), labels)
            values["loss"] = mean_loss(logits, labels)
            seconds = time.perf_counter() - start
            values.update(runtime=seconds, samples=len(labels))
            values["samples_per_second"] = len(labels) / seconds
            results.update({f"eval_{name}{suffix}": value for name, value in values.items()})
        return results

    def predict(self) -> Path:
        folder = self.folder / "submission"
        for split, task, name in self.job.predictions():
            values = predictions_of(self.outputs(split)[0], task)
            if self.accelerator.is_main_process:
                write_submission(folder / name, task, self.job.in_task_order(values))
        return folder

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
            self.state.save(self.folder)
        self.job.end(self.state.global_step)

    def save_metrics(self, name: str, metrics: dict[str, float]) -> dict[str, float]:
        if self.accelerator.is_main_process:
            write_json(self.folder / f"{name}_results.json", metrics)
        return metrics


if __name__ == "__main__":
    run_cli(main)
