"""The Trainer's side of the window: its numbers in the logs, and warnings for the user."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

# Not from `transformers` itself, which may still be half imported; nor the Trainer, which must not
# be imported because of us.
from transformers.trainer_callback import TrainerCallback

from ..arguments import MOST_STEPS
from ..distributed import assert_ranks_agree
from ..wrappers import dwmgrad_in, innermost
from .optim_args import preset_of


@dataclass
class _Limits:
    """What the loss made of the steps: how many it held back, the sum of their `step_limit`."""

    steps: int = 0
    held: int = 0
    total: float = 0.0
    highest: float = 0.0  # of `effective_lr`

    def add(self, limit: float, effective_lr: float) -> None:
        self.steps += 1
        if limit < 1 and effective_lr > 0:  # not where the learning rate itself is 0
            self.held, self.total = self.held + 1, self.total + limit
        self.highest = max(self.highest, effective_lr)


class DWMGradCallback(TrainerCallback):
    """Adds `window`, `effective_momentum` and `window_increase_share` to every training log.

    The share is that of the steps since the last log whose signal was positive. With `loss_limit`
    there are `step_limit`, what the last step was scaled by, and `effective_lr`; with `loss_guard`
    there is `guarded_steps`: how many steps it has skipped. Every Trainer has this callback; with
    another optimizer it does nothing.
    """

    def __init__(self) -> None:
        self._seen = (0, 0)
        self._limits = _Limits()
        self._asked: bool | None = None  # None: whatever the arguments' `optim` says

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        given = kwargs.get("optimizer")
        if given is not None:
            self._asked = dwmgrad_in(given) is not None
        if self._asked and args.deepspeed_plugin is not None:
            raise RuntimeError(
                "DeepSpeed ignores Trainer(optimizers=...), so AdamW would train instead of "
                "DWMGrad: use --optim dwmgrad_finetune, or another of its names, or "
                "optimizer_cls_and_kwargs"
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = dwmgrad_in(kwargs.get("optimizer"))
        asked = preset_of(args.optim) is not None if self._asked is None else self._asked
        if optimizer is None and asked:
            other = type(innermost(kwargs.get("optimizer"))).__name__
            raise RuntimeError(
                f"DWMGrad was asked for and {other} trains in its place. Look for an "
                "optimizer_cls_and_kwargs or a create_optimizer() of your own, and for an "
                '"optimizer" in DeepSpeed\'s configuration: remove it, and give DWMGrad as '
                "--optim dwmgrad_finetune, or another of its names, or optimizer_cls_and_kwargs"
            )
        if optimizer is None:
            return
        self._seen, self._limits = _counts(optimizer), _Limits()
        if 1 <= state.max_steps <= MOST_STEPS:  # else it makes none, or does not know
            optimizer.expect_steps(state.max_steps)
        strategy = getattr(args, "train_sampling_strategy", "random")  # its name since 5.0
        if getattr(args, "group_by_length", False) or strategy == "group_by_length":
            warnings.warn(
                "batches are sorted by length, so the loss follows the lengths and the window "
                "goes to its bounds: train DWMGrad on batches in random order",
                stacklevel=2,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = dwmgrad_in(kwargs.get("optimizer"))
        if optimizer is None:
            return
        group = optimizer.param_groups[0]
        if group["loss_limit"] is not None and not group["capturable"]:  # which would have to wait
            self._limits.add(group["step_limit"], group["effective_lr"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        limits = self._limits
        if limits.steps and state.is_world_process_zero:
            held = f"none of {limits.steps} steps"
            if limits.held:
                mean = f"{limits.total / limits.held:.2g} of their size in the mean"
                held = f"{limits.held} of {limits.steps} steps, to {mean}"
            print(
                f"dwmgrad: the loss held back {held}; the effective_lr was at most "
                f"{limits.highest:.2g}"
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        optimizer = dwmgrad_in(kwargs.get("optimizer"))
        if optimizer is None or logs is None or not _is_of_training(logs):
            return
        numbers: dict[str, float] = {
            "window": optimizer.window,  # with `capturable`, brings the others up to date
            "effective_momentum": optimizer.effective_momentum,
        }
        observations, increases = _counts(optimizer)
        group = optimizer.param_groups[0]
        if group["loss_limit"] is not None:
            numbers |= {name: group[name] for name in ("step_limit", "effective_lr")}
        if group["loss_guard"] is not None:
            numbers["guarded_steps"] = group["guarded_steps"]
        if observations > self._seen[0]:
            share = (increases - self._seen[1]) / (observations - self._seen[0])
            numbers["window_increase_share"] = share
        self._seen = observations, increases
        # `logs` goes on to the callbacks after this one; the history was written before them.
        logs.update(numbers)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(numbers)


class RanksAgreeCallback(TrainerCallback):
    """Checks every N steps, and at the end, that all ranks have one window and one set of weights.

        Trainer(..., callbacks=[RanksAgreeCallback(every=100)])

    It calls `dwmgrad.distributed.assert_ranks_agree`, which raises RuntimeError if the ranks
    differ. With another optimizer it does nothing.

    Args:
        every: the number of optimizer steps between two checks.
    """

    def __init__(self, every: int) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1; got {every!r}")
        self.every = every

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self.on_train_end(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs.get("optimizer")
        if dwmgrad_in(optimizer) is not None:
            assert_ranks_agree(optimizer)


def _is_of_training(logs: dict[str, Any]) -> bool:
    """Whether a log has a loss of the training, under any name, such as `embedding_loss`.

    The logs of an evaluation, of a prediction and of the training's end have their duration.
    """
    if any(key.endswith("_runtime") for key in logs):
        return False
    others = ("eval_", "test_", "predict_", "train_")
    return any(f"_{key}".endswith("_loss") and not key.startswith(others) for key in logs)


def _counts(optimizer: Any) -> tuple[int, int]:
    group = optimizer.param_groups[0]
    return group["observations"], group["increases"]
