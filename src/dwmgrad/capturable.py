"""`capturable=True`: the loss, the window and what follows from them never leave the device.

The rule gets tensors of one number where it gets Python's numbers elsewhere, so that no step waits
for the device, and a CUDA graph can contain it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import kernels, rule
from .kernels.one_launch import Addresses
from .plan import Moves
from .progress import guard_numbers, guard_of, progress_of, window_of
from .ranks import AgreedOnDevice, widest
from .state import ZERO_SHARE, share_of, stochastic_state

_LOSSES = ("last_loss", "mean_loss")  # NaN for None
_GUARD_COUNTS = ("guard_seen", "guard_in_row", "guarded_steps")
_COUNTS = ("window", "observations", "increases", "steps", *_GUARD_COUNTS)
_MEASURES = ("micro_batches", "step_limit", "effective_lr", "clipped_to")
_GUARD_MEASURES = ("guard_mean", "guard_deviation")
_NUMBERS = (*_LOSSES, *_COUNTS, *_MEASURES, *_GUARD_MEASURES)


class _Share:
    """The share of the zeros in the mean squares of `members` parameters, one number on the device.

    On the host it is a number in each parameter's state.
    """

    def __init__(self, number: Tensor, members: int) -> None:
        self.number = number
        self.members = members


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
        _refuse_capture(device)
        self.device = device
        self._dtype = widest(device)
        numbers = [math.nan if groups[0][name] is None else groups[0][name] for name in _NUMBERS]
        self._numbers = torch.tensor(numbers, dtype=self._dtype, device=device)
        self._skipped_elements = torch.zeros((), dtype=torch.int32, device=device)
        self._skipped_steps = torch.zeros((), dtype=torch.int32, device=device)
        self._at_floor = torch.zeros((), dtype=torch.int32, device=device)
        self._addresses = Addresses()
        self._shares: dict[int, tuple[dict[str, Any], _Share]] = {}  # by the id of a state
        self._fresh: dict[float, _Share] = {}  # made for the step to come
        self.begins = groups[0]["steps"] == 0  # no step has been tried yet

    def age(self, own: dict[str, Any]) -> _Share:
        """What a parameter has in common with those that began with it; `own` is its state."""
        kept = self._shares.get(id(own))
        if kept is not None and kept[0] is own:
            return kept[1]
        _refuse_capture(self.device)
        value = float(own.get(ZERO_SHARE, 0.0))
        share = self._fresh.get(value)
        if share is None:
            number = torch.full((), value, dtype=self._dtype, device=self.device)
            share = self._fresh[value] = _Share(number, 0)
        share.members += 1
        self._shares[id(own)] = own, share
        return share

    def keep_only(self, states: Iterable[dict[str, Any]]) -> None:
        """Lets go of the states that the optimizer has no more, as after `state.clear()`."""
        present = set(map(id, states))
        for own, (_, share) in list(self._shares.items()):
            if own not in present:
                share.members -= 1
                del self._shares[own]

    def _after_step(
        self, cohorts: Moves, decay: Tensor | float, happens: Tensor
    ) -> dict[_Share, Tensor]:
        """Moves the shares on; returns, for each cohort's age, its share now."""
        self._fresh.clear()
        self.begins = False
        together: dict[_Share, list[dict[str, Any]]] = {}
        for cohort in chain.from_iterable(cohorts):
            together.setdefault(cohort.age, []).extend(cohort.states)
        moved = {}
        for age, owns in together.items():
            share = age
            if len(owns) < age.members:  # some of them have no gradient: they part
                age.members -= len(owns)
                share = _Share(age.number.clone(), len(owns))
                self._shares.update((id(own), (own, share)) for own in owns)
            after = rule.share_after(share.number, decay)
            share.number.copy_(torch.where(happens, after, share.number))
            moved[age] = share.number
        return moved

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
        cohorts: Moves,
        agreed: AgreedOnDevice,
        grad_scale: Tensor | None = None,
        clipped_to: Tensor | float = 1.0,
        weight_of: Callable[[Tensor], float] = lambda param: 1.0,
        total: Callable[[Tensor], Tensor] = lambda predicted: predicted,
    ) -> None:
        """One step of all groups, in place and without waiting for the device.

        Args:
            groups: the parameter groups.
            cohorts: what is to move, by `age`.
            agreed: what the ranks make of the step.
            grad_scale: what a gradient scaler leaves to this step, if one does.
            clipped_to: see `rule.share_left`.
            weight_of, total: how `rule.step_limit` adds up over the ranks.
        """
        happens, counts = agreed.loss < math.inf, agreed.loss.isfinite()
        now = dict(zip(_NUMBERS, self._numbers.unbind(), strict=True))
        if groups[0]["loss_guard"] is not None:
            guard = guard_of({**groups[0], **now})
            passes = ~(counts & guard.refuses(agreed.loss))
            guard.observe(agreed.loss, counts)
            now |= guard_numbers(guard)
            happens, counts = happens & passes, counts & passes
        steps, count = now["steps"] + happens, now["micro_batches"]
        window = window_of({**groups[0], **now})
        alike = (count == 0) | (count == agreed.micro_batches)
        window.observe(agreed.loss, alike, counts)
        count = torch.where(counts, agreed.micro_batches, count)
        shares = self._after_step(cohorts, window.decay(groups[0]["second_moment_window"]), happens)
        inverse = 1.0 if grad_scale is None else grad_scale.to(steps).reciprocal()
        halves = (steps % 65536, (steps / 65536).floor() % 65536)
        calls = []
        present = [{**group, "lr": self._lr_of(group)} for group in groups]
        rates = rule.learning_rates(present)
        for group, lr, own in zip(groups, rates, cohorts, strict=True):
            for cohort in own:
                five = rule.coefficients(group, window, lr, shares[cohort.age])
                calls.append((group, cohort.buckets, five))
        limit: Any = now["step_limit"]
        if groups[0]["loss_limit"] is not None:
            share = rule.share_left(now["clipped_to"], self._number(clipped_to), now["steps"])
            predicted = total(self._predicted(calls, inverse, weight_of) / share)
            now["clipped_to"] = torch.where(happens, share, now["clipped_to"])
            schedule = rule.share_of_peak(present)
            fresh = rule.step_limit(groups[0], window, agreed.loss, schedule, predicted, limit)
            self._at_floor.logical_or_(counts & (agreed.loss <= groups[0]["loss_floor"]))
            limit = torch.where(counts, fresh, limit)
            effective = rule.effective_lr(groups[0], window, rates[0] * limit)
            now["effective_lr"] = torch.where(happens, effective, now["effective_lr"])
        now |= progress_of(window)
        now |= {"micro_batches": count, "steps": steps, "step_limit": limit}
        self._numbers.copy_(torch.stack([now[name] for name in _NUMBERS]))
        self._skipped_steps.logical_or_(agreed.loss.isnan())
        if groups[0]["loss_limit"] is None:
            limit = 1.0
        for group, buckets, (step_size, decay, momentum, eps, shrink) in calls:
            numbers = [step_size * limit, decay, 1 - decay, momentum, eps, shrink * limit]
            numbers += [inverse, happens, *halves]
            kernels.run_on_device(
                buckets,
                torch.stack([self._number(each) for each in numbers]),
                self._skipped_elements,
                self._addresses,
                stochastic_state=stochastic_state(group),
                stochastic_params=group["stochastic_rounding"],
                use_foreach=group["foreach"],
                use_fused=group["fused"],
            )

    def _lr_of(self, group: dict[str, Any]) -> Tensor | float:
        lr = group["lr"]
        on_device = isinstance(lr, Tensor) and lr.device == self.device
        return lr.to(self._dtype) if on_device else float(lr)

    def _predicted(
        self, calls: list[Any], inverse: Tensor | float, weight_of: Callable[[Tensor], float]
    ) -> Tensor:
        """See `rule.step_limit`; of this rank's part of the parameters."""
        total = torch.zeros((), dtype=self._dtype, device=self.device)
        for group, buckets, (step_size, decay, momentum, eps, _) in calls:
            for norm, ordinal in kernels.squared_norms_on_device(buckets, decay, eps, inverse):
                norm = weight_of(group["params"][ordinal]) * norm
                total = total + rule.predicted_decrease(step_size, momentum, norm)
        return total

    def _number(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(self._dtype).reshape(())
        return torch.full((), value, dtype=self._dtype, device=self.device)

    def write(self, groups: list[dict[str, Any]]) -> tuple[bool, bool, bool]:
        """Writes the numbers into the parameter groups. Waits for the device.

        Returns:
            Whether, since the last call, an element was skipped, a step skipped for its loss, and a
            loss at `loss_floor` or below it.
        """
        numbers: dict[str, Any] = dict(zip(_NUMBERS, self._numbers.tolist(), strict=True))
        numbers |= {name: int(numbers[name]) for name in _COUNTS}
        numbers |= {name: None for name in _LOSSES if math.isnan(numbers[name])}
        if numbers["micro_batches"].is_integer():
            numbers["micro_batches"] = int(numbers["micro_batches"])
        for group in groups:
            group.update(numbers)
        shares = list({id(share): share for _, share in self._shares.values()}.values())
        if shares:
            values = torch.stack([share.number for share in shares]).tolist()
            now = dict(zip(map(id, shares), map(share_of, values), strict=True))
            for own, share in self._shares.values():
                if ZERO_SHARE in own:
                    own[ZERO_SHARE] = now[id(share)]
        marks = (self._skipped_elements, self._skipped_steps, self._at_floor)
        elements, steps, at_floor = (bool(mark) for mark in marks)
        for mark in marks:
            mark.zero_()
        return elements, steps, at_floor


def _refuse_capture(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("take a few steps before the capture: they make state and kernels")


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
