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
from .distributed import AgreedOnDevice, widest
from .kernels.one_launch import Addresses
from .progress import LEAST_EPS, momentum_scale
from .state import dithers

_LOSSES = ("last_loss", "mean_loss")  # NaN for None
_COUNTS = ("window", "observations", "increases", "steps")
_NUMBERS = (*_LOSSES, *_COUNTS, "zero_share", "micro_batches")


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
        numbers = [math.nan if groups[0][name] is None else groups[0][name] for name in _NUMBERS]
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
        agreed: AgreedOnDevice,
        grad_scale: Tensor | None,
    ) -> None:
        """One step of all groups, in place and without waiting for the device.

        Args:
            groups: the parameter groups.
            tensors: for each group, what is to move.
            agreed: what the ranks make of the step.
            grad_scale: what a gradient scaler leaves to this step, if one does.
        """
        last, mean, window, observations, increases, steps, zero_share, count = (
            self._numbers.unbind()
        )
        common, loss = groups[0], agreed.loss
        happens, moves = loss < math.inf, loss.isfinite()
        alike = (count == 0) | (count == agreed.micro_batches)  # else not to be compared
        smoothed = _smoothed(common["loss_smoothing"], loss, torch.where(alike, mean, torch.nan))
        grows = moves & alike & _grows(common["window_signal"], smoothed, mean)
        shrinks = moves & alike & ~grows
        window = window + grows.to(window.dtype) - shrinks.to(window.dtype)
        window = window.clamp(1, common["max_window"])
        last, mean = torch.where(moves, loss, last), torch.where(moves, smoothed, mean)
        steps = steps + happens
        fixed = common["second_moment_window"]
        reach = window if fixed is None else torch.full_like(window, fixed)
        decay = (reach - 1) / reach
        zero_share = torch.where(happens, zero_share * decay, zero_share)
        count = torch.where(moves, agreed.micro_batches, count)
        observations, increases = observations + moves, increases + grows
        self._numbers.copy_(
            torch.stack([last, mean, window, observations, increases, steps, zero_share, count])
        )
        correction = (1 - zero_share).sqrt() if common["bias_correction"] else 1.0
        self._skipped.logical_or_(loss.isnan())
        inverse = 1.0 if grad_scale is None else grad_scale.to(steps).reciprocal()
        halves = (steps % 65536, (steps / 65536).floor() % 65536)
        for group, own in zip(groups, tensors, strict=True):
            lr = group["lr"]
            on_device = isinstance(lr, Tensor) and lr.device == self.device
            lr = lr.to(self._dtype) if on_device else float(lr)
            momentum = group["momentum"] * window / group["max_window"]
            step_size = (-lr if group["maximize"] else lr) * correction
            if group["normalize_momentum"]:
                step_size = step_size * momentum_scale(group["momentum"], momentum)
            eps = group["eps"] * correction
            numbers = [
                step_size,
                decay,
                1 - decay,
                momentum,
                eps.clamp(min=LEAST_EPS) if isinstance(eps, Tensor) else eps,
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
        numbers: dict[str, Any] = dict(zip(_NUMBERS, self._numbers.tolist(), strict=True))
        numbers |= {name: int(numbers[name]) for name in _COUNTS}
        numbers |= {name: None for name in _LOSSES if math.isnan(numbers[name])}
        if numbers["micro_batches"].is_integer():
            numbers["micro_batches"] = int(numbers["micro_batches"])
        for group in groups:
            group.update(numbers)
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


def _smoothed(smoothing: float, loss: Tensor, mean: Tensor) -> Tensor:
    """The exponential mean with this loss; `mean` is NaN before the first one."""
    if not smoothing:
        return loss
    return torch.where(mean.isnan(), loss, smoothing * mean + (1 - smoothing) * loss)


def _grows(signal: str, loss: Tensor, last: Tensor) -> Tensor:
    """Whether the signal is positive; `last` is NaN before the first loss."""
    if signal == "loss":
        return loss > 0
    return loss > last.nan_to_num(0.0) if signal == "increase" else loss < last
