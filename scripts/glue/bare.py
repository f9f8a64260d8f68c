"""What a bare Accelerate loop needs where the Trainer has it built in."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from dwmgrad import DWMGrad
from dwmgrad.distributed import assert_ranks_agree
from dwmgrad.integrations.accelerate import innermost
from glue.checkpoints import steps_done, unusable
from glue.errors import UsageError
from glue.output import write_json

# Every other name of TrainingArguments is refused when the user set it.
HONOURED = frozenset(
    (
        "output_dir",
        "overwrite_output_dir",
        "do_train",
        "do_eval",
        "do_predict",
        "eval_strategy",
        "eval_steps",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "optim",
        "optim_args",
        "max_grad_norm",
        "num_train_epochs",
        "max_steps",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_ratio",
        "warmup_steps",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "seed",
        "data_seed",
        "bf16",
        "fp16",
        "use_cpu",
        "no_cuda",
        "ddp_backend",
        "local_rank",
        "resume_from_checkpoint",
        "group_by_length",
        "train_sampling_strategy",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_drop_last",
        "disable_tqdm",
        "gradient_checkpointing",
        "full_determinism",
        "log_level",
    )
)


def check_honoured(training: TrainingArguments, given: frozenset[str]) -> None:
    """Refuse what this loop would silently ignore.

    Raises:
        UsageError: names every argument that was set, differs from its default, and means nothing
            to a bare loop.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(training)}
    unable = [
        name
        for name in sorted((given & defaults.keys()) - HONOURED)
        if getattr(training, name) != defaults[name]
        and not (name == "report_to" and training.report_to in ([], ["none"], "none"))
    ]
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(getattr(training, name), "value", None) == "best":
            unable.append(f"{name} best")
    if str(getattr(training, "train_sampling_strategy", "random")) == "batch_rebalance":
        unable.append("train_sampling_strategy batch_rebalance")
    if unable:
        raise UsageError(
            f"run_glue_no_trainer.py cannot honour --{', --'.join(unable)}: leave it out, or use "
            "run_glue.py (FSDP, DeepSpeed and compilation are chosen by `accelerate config`)"
        )


class EpochSampler(Sampler[int]):
    """The same order for the same (seed, epoch), on every rank and after every resume.

    With `lengths`, examples of similar length come together, in batches of `batch_size`. The loop
    sets `epoch`; a method `set_epoch` would let Accelerate count, from 0 again after a resume.
    """

    def __init__(
        self, size: int, seed: int, *, lengths: list[int] | None = None, batch_size: int = 1,
        shuffle: bool = True,
    ) -> None:  # fmt: skip
        self.size, self.seed, self.epoch = size, seed, 0
        self.lengths, self.batch_size, self.shuffle = lengths, batch_size, shuffle

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.size))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.lengths is not None:
            return iter(
                get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
            )
        return iter(torch.randperm(self.size, generator=generator).tolist())


def train_sampler(data: Dataset, training: TrainingArguments, ranks: int) -> EpochSampler:
    """The order that --group_by_length, --train_sampling_strategy and the seeds ask for."""
    strategy = str(getattr(training, "train_sampling_strategy", "random"))
    grouped = getattr(training, "group_by_length", False) or strategy == "group_by_length"
    lengths = [len(ids) for ids in data["input_ids"]] if grouped else None  # type: ignore[index]
    return EpochSampler(
        len(data),  # type: ignore[arg-type]
        training.seed if training.data_seed is None else training.data_seed,
        lengths=lengths,
        batch_size=training.per_device_train_batch_size * ranks,
        shuffle=strategy != "sequential",
    )


def loader(
    data: Dataset, training: TrainingArguments, collate: Any, sampler: EpochSampler | None = None
) -> DataLoader:
    """Batches for training (with a sampler) or for evaluation, in order.

    Its own generator keeps the workers' seeds from moving the model's dropout, so that a resumed
    run draws the same numbers as one that never stopped.
    """
    train = sampler is not None
    return DataLoader(
        data,
        batch_size=(
            training.per_device_train_batch_size if train else training.per_device_eval_batch_size
        ),
        sampler=sampler,
        collate_fn=collate,
        drop_last=train and training.dataloader_drop_last,
        num_workers=training.dataloader_num_workers,
        pin_memory=training.dataloader_pin_memory and torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(training.seed),
    )


class Every:
    """Is it time, at this step, for logging, evaluation or a checkpoint?"""

    def __init__(self, strategy: Any, steps: float | None, total: int) -> None:
        self.strategy = getattr(strategy, "value", strategy)
        # below 1 it is a share of all steps, as in the Trainer
        self.steps = max(1, math.ceil(total * steps) if steps and steps < 1 else int(steps or 1))

    def __call__(self, step: int, epoch_ended: bool) -> bool:
        if self.strategy == "epoch":
            return epoch_ended
        return self.strategy == "steps" and step % self.steps == 0


@dataclasses.dataclass
class State:
    """Where training is, in the form of the Trainer's trainer_state.json, which it is saved as."""

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    epoch_index: int = 0
    batches_done: int = 0  # of this epoch, per rank
    loss_since_log: float = 0.0
    steps_since_log: int = 0
    loss_total: float = 0.0
    log_history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def log(self, **values: Any) -> dict[str, Any]:
        """Add an entry, with the epoch and the step."""
        entry = {**values, "epoch": round(self.epoch, 4), "step": self.global_step}
        self.log_history.append(entry)
        return entry

    def save(self, folder: Path) -> None:
        write_json(folder / "trainer_state.json", dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> State:
        """Raises UsageError where `folder` is not a checkpoint of this loop."""
        steps_done(folder)
        try:
            state = cls(**json.loads((folder / "trainer_state.json").read_text(encoding="utf-8")))
        except TypeError as error:  # other names than ours
            raise unusable(
                folder,
                f"not a checkpoint of run_glue_no_trainer.py: {error}; the two scripts do not read "
                "each other's",
            ) from error
        for name, value in vars(cls()).items():
            kind = (int, float) if isinstance(value, float) else type(value)
            if not isinstance(getattr(state, name), kind):
                raise unusable(folder, f"trainer_state.json: {name} {getattr(state, name)!r:.40}")
        return state


def check_ranks(optimizer: Any, step: int, every: int | None) -> None:
    """Every `every` steps, if asked: raises RuntimeError where ranks of a DWMGrad differ."""
    if every and step % every == 0 and isinstance(innermost(optimizer), DWMGrad):
        assert_ranks_agree(optimizer)


def window_of(optimizer: Any) -> dict[str, float]:
    """DWMGrad's window and momentum, where that is the (wrapped) optimizer; else nothing."""
    inner = innermost(optimizer)
    if not isinstance(inner, DWMGrad):
        return {}
    return {"window": inner.window, "effective_momentum": inner.effective_momentum}
