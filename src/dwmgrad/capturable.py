"""`capturable=True`: the loss, the window and what follows from them never leave the device.

What `Window` and `DWMGrad.step` do with Python's numbers is done here with tensors of one number,
so that no step waits for the device, and a CUDA graph can contain it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import kernels
from .distributed import widest
from .kernels.one_launch import Addresses
from .state import dithers

_COUNTS = ("window", "observations", "increases", "steps")


class DeviceWindow:
    """The window on the device, and the steps that follow it.

    The numbers in the parameter groups are as old as the last `write`.

    Args:
        groups: the parameter groups, whose numbers it starts from.
        device: the one device that all parameters are on.

    Raises:
        RuntimeError: while a CUDA graph is captured.
    """

    def __init__(self, groups: list[dict[str, Any]], device: torch.device) -> None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("take a few steps before the capture: they make state and kernels")
        self.device = device
        self._dtype = widest(device)
        last = groups[0]["last_loss"]
        numbers = [math.nan if last is None else last, *(groups[0][name] for name in _COUNTS)]
        self._numbers = torch.tensor(numbers, dtype=self._dtype, device=device)
        self._held = torch.zeros((), dtype=torch.int32, device=device)
        self._skipped = torch.zeros((), dtype=torch.int32, device=device)
        self._addresses = Addresses()

    def check(self, params: Iterable[Tensor]) -> None:
        """Raises RuntimeError unless all parameters are on its device."""
        others = {param.device for param in params} - {self.device}
        if others:
            raise RuntimeError(
                f"capturable=True takes parameters of one device, got {self.device} and {others}"
            )

    def step(
        self,
        groups: list[dict[str, Any]],
        tensors: list[kernels.Tensors],
        loss: Tensor,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """One step of all groups, in place and without waiting for the device.

        Args:
            groups: the parameter groups.
            tensors: for each group, what is to move.
            loss: as `distributed.mean_on_device` gives it.
            grad_scale, found_inf: what a gradient scaler leaves to this step, if one does.
        """
        last, window, observations, increases, steps = self._numbers.unbind()
        happens, moves = loss < math.inf, loss.isfinite()
        grows = moves & _grows(groups[0]["window_signal"], loss, last)
        window = window + grows.to(window.dtype) - (moves & ~grows).to(window.dtype)
        window = window.clamp(1, groups[0]["max_window"])
        last = torch.where(moves, loss, last)
        steps = steps + happens
        self._numbers.copy_(
            torch.stack([last, window, observations + moves, increases + grows, steps])
        )
        self._skipped.logical_or_(~happens if found_inf is None else ~happens & (found_inf == 0))
        inverse = 1.0 if grad_scale is None else grad_scale.to(steps).reciprocal()
        halves = (steps % 65536, (steps / 65536).floor() % 65536)
        for group, own in zip(groups, tensors, strict=True):
            lr = group["lr"]
            on_device = isinstance(lr, Tensor) and lr.device == self.device
            lr = lr.to(self._dtype) if on_device else float(lr)
            decay = (window - 1) / window
            numbers = [
                -lr if group["maximize"] else lr,
                decay,
                1 - decay,
                group["momentum"] * window / group["max_window"],
                group["eps"],
                lr * group["weight_decay"],
                inverse,
                happens,
                *halves,
            ]
            kernels.update_on_device(
                own,
                torch.stack([self._number(each) for each in numbers]),
                self._held,
                self._addresses,
                dither_state=dithers(group),
                dither_params=group["stochastic_rounding"],
                use_foreach=group["foreach"],
                use_fused=group["fused"],
            )

    def _number(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(self._dtype).reshape(())
        return torch.full((), value, dtype=self._dtype, device=self.device)

    def write(self, groups: list[dict[str, Any]]) -> tuple[bool, bool]:
        """Writes the numbers into the parameter groups. Waits for the device.

        Returns:
            Whether, since the last call, an element was held, and a step skipped for its loss.
        """
        last, *counts = self._numbers.tolist()
        progress = dict(zip(_COUNTS, map(int, counts), strict=True))
        for group in groups:
            group.update(progress, last_loss=None if math.isnan(last) else last)
        held, skipped = bool(self._held), bool(self._skipped)
        self._held.zero_()
        self._skipped.zero_()
        return held, skipped


def reads_lr(group: dict[str, Any]) -> bool:
    """Whether the host may read the group's learning rate without waiting for a device."""
    lr = group["lr"]
    return not (group["capturable"] and isinstance(lr, Tensor) and lr.device.type != "cpu")


def takes_scale(optimizer: Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Whether `step()` itself may do what a gradient scaler does around it.

    Not where someone else wants to know whether `step()` was called: Accelerate, whose learning
    rate schedulers wait at a skipped step; or FSDP's scaler, whose ranks agree before they skip.
    """
    scalers = (torch.amp.GradScaler, torch.cuda.amp.GradScaler, torch.cpu.amp.GradScaler)
    patched_by = getattr(vars(optimizer).get("step"), "__module__", "")
    return type(scaler) in scalers and not patched_by.startswith("accelerate")


def _grows(signal: str, loss: Tensor, last: Tensor) -> Tensor:
    """Whether the signal is positive; `last` is NaN before the first loss."""
    if signal == "loss":
        return loss > 0
    return loss > last.nan_to_num(0.0) if signal == "increase" else loss < last
