"""Broken batches: some batches of a run get wrong labels, and optimizers are held to skip them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from dwmgrad.guard import Guard


def broken(batch: Any, number: int, share: float, classes: int, seed: int) -> Any:
    """The batch. In a share of all batches each label is wrong: another one below `classes`.

    Which batches, and which labels, follow from the seed and the batch's number alone.
    """

    def chance(which: int) -> torch.Generator:
        return torch.Generator().manual_seed(1_000_003 * seed + which)

    if torch.rand((), generator=chance(number)) < share:
        labels: Tensor = batch["labels"]
        off = torch.randint(1, classes, labels.shape, generator=chance(-1 - number))
        batch["labels"] = (labels + off) % classes
    return batch


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that skips a step whose gradient's norm stands out, by the rule of `loss_guard`.

    It clips the gradients itself, to `max_grad_norm`, as it measures them before. For `guard` see
    `dwmgrad.guard.Guard`.
    """

    def __init__(
        self, params: Any, *, guard: float = 3.0, max_grad_norm: float = 1.0, **options: Any
    ) -> None:
        super().__init__(params, **options)
        self.guard, self.max_grad_norm = Guard(guard), max_grad_norm

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """As in AdamW, or nothing."""
        params = [param for group in self.param_groups for param in group["params"]]
        norm = float(clip_grad_norm_(params, self.max_grad_norm))
        refused = self.guard.observe(norm)
        return None if refused else super().step(closure)


def skipped_by(optimizer: Any) -> int:
    """How many steps a guard has skipped."""
    if isinstance(optimizer, GuardedAdamW):
        return int(optimizer.guard.refused)
    return optimizer.param_groups[0].get("guarded_steps", 0)
