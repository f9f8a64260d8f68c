"""The loss of one effective batch, gathered micro-batch by micro-batch until its step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .distributed import mean_over_ranks


class Observation:
    """Collects the micro-batch losses that belong to one optimizer step.

    It is open until its step settles it. A settled observation stays for further `step()` calls of
    the same logical step: DeepSpeed makes one per parameter group or per sub-group.

    Args:
        route: who brings the losses, for error messages.
        average: whether the step's loss is the mean of the micro-batch losses; by default their
            sum, because they come divided, as their gradients are.
    """

    def __init__(self, route: str, average: bool = False) -> None:
        self.route = route
        self.settled = False
        self._average = average
        self._total: Tensor | float = 0.0
        self._count = 0
        self._mean: Any = None
        self._stepped: set[int] = set()
        self._moved: set[int] = set()

    def add(self, loss: Tensor | float) -> None:
        """Adds one micro-batch's loss, detached, in float32 at least, without a host sync."""
        value = checked_loss(loss)
        if isinstance(self._total, Tensor) and isinstance(value, Tensor):
            value = value.to(self._total.device)
        self._total = value if self._count == 0 else self._total + value
        self._count += 1

    def settle(
        self,
        device: torch.device,
        group: Any = None,
        mean: Callable[..., Any] = mean_over_ranks,
    ) -> Any:
        """The step's loss, the same on every rank, as `mean` gives it. Reduced only once."""
        if self.settled:
            return self._mean
        total = self._total / self._count if self._average else self._total
        self._mean = mean(total, device, group)
        self.settled = True
        return self._mean

    def repeats(self, groups: list[dict[str, Any]]) -> bool:
        """Whether parameters of these groups were stepped with this observation before."""
        return any(key in self._stepped for key in _keys(groups))

    def mark_stepped(self, groups: list[dict[str, Any]]) -> None:
        self._stepped.update(_keys(groups))

    def has_moved(self, group: dict[str, Any]) -> bool:
        """Whether it has moved this group's window before: it does so once."""
        return id(group) in self._moved

    def mark_moved(self, groups: list[dict[str, Any]]) -> None:
        self._moved.update(map(id, groups))


def _keys(groups: list[dict[str, Any]]) -> list[int]:
    return [id(group["params"][0]) for group in groups if group["params"]]


def checked_loss(loss: Any) -> Tensor | float:
    """A loss as a detached float32 or float64 scalar tensor, or as a Python float.

    Raises:
        TypeError: if it is neither a real tensor nor a real number.
        ValueError: if it is a tensor with more or fewer than one element.
    """
    if isinstance(loss, Tensor):
        if loss.is_complex() or loss.dtype == torch.bool:
            raise TypeError(f"loss must be real, got a tensor of {loss.dtype}")
        if loss.numel() != 1:
            raise ValueError(
                f"loss must be a scalar, got a tensor of shape {tuple(loss.shape)}: "
                "pass the mean that backward() ran on"
            )
        if loss.dtype in (torch.float16, torch.bfloat16):
            warnings.warn(
                f"the loss is {loss.dtype}: so coarse that many batches tie, and a tie shrinks the "
                "window. Compute the loss in float32 (autocast does).",
                stacklevel=4,
            )
        loss = loss.detach()
        if hasattr(loss, "full_tensor"):  # a DTensor, which every rank of its mesh brings
            loss = loss.full_tensor()
        loss = loss.reshape(())
        return loss if loss.dtype == torch.float64 else loss.float()
    if isinstance(loss, bool) or not isinstance(loss, Real):
        raise TypeError(f"loss must be a tensor or a number, got {loss!r} ({type(loss).__name__})")
    try:
        return float(loss)
    except OverflowError:
        return math.inf
