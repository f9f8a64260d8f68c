"""`capturable=True`: the loss, the window and what follows from them never leave the device.

The rule gets tensors of one number where it gets Python's numbers elsewhere, so that no step waits
for the device, and a CUDA graph can contain it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import kernels, limit, rule
from .kernels import one_launch
from .plan import Call, Moves, calls_of
from .progress import COUNTS, LOSSES, PROGRESS, advanced
from .ranks import Agreed
from .scalars import largest, placed, widest
from .state import ZERO_SHARE, share_of, zero_share_of

_NUMBERS = (*(name for name in PROGRESS if name != "schema"), "clipped_to")


class DeviceWindow:
    """The window on the device, and the steps that follow it.

    It starts from the numbers in the parameter groups; later these are as old as the last `write`.
    """

    def __init__(self, groups: list[dict[str, Any]], device: torch.device) -> None:
        _refuse_capture(device)
        self.device = device
        self._dtype = widest(device)
        self._number = partial(placed, dtype=self._dtype, device=device)
        numbers = [math.nan if groups[0][name] is None else groups[0][name] for name in _NUMBERS]
        self._numbers = torch.tensor(numbers, dtype=self._dtype, device=device)
        self._marks = torch.zeros(3, dtype=torch.int32, device=device)
        self._skipped_elements, self._skipped_steps, self._at_floor = self._marks.unbind()
        self._addresses = one_launch.Addresses()
        # `state.ZERO_SHARE` on the device, one number for all that began together; by a state's id
        self._shares: dict[int, tuple[dict[str, Any], Tensor]] = {}
        self._fresh: dict[float, Tensor] = {}  # made for the step to come
        self._zero = self._number(0.0)  # of all that nothing corrects; it never moves
        self.begins = groups[0]["steps"] == 0  # no step has been tried yet

    def age(self, own: dict[str, Any]) -> Tensor:
        """What a parameter has in common with those that began with it; `own` is its state."""
        kept = self._shares.get(id(own))
        if kept is None:
            _refuse_capture(self.device)
            value = zero_share_of(own)
            if value and value not in self._fresh:
                self._fresh[value] = self._number(value)
            kept = self._shares[id(own)] = own, self._fresh[value] if value else self._zero
        return kept[1]

    def keep_only(self, states: Iterable[dict[str, Any]]) -> None:
        """Lets go of the states that the optimizer has no more, as after `state.clear()`."""
        present = set(map(id, states))
        self._shares = {own: kept for own, kept in self._shares.items() if own in present}

    def _after_step(
        self, moves: Moves, decay: Tensor | float, happens: Tensor
    ) -> dict[Tensor, Tensor]:
        """Moves the shares on; returns, for each age, its share now."""
        self._fresh.clear()
        self.begins = False
        together: dict[Tensor, list[dict[str, Any]]] = {}
        for each in chain.from_iterable(moves):
            together.setdefault(each.age, []).extend(each.states)
        all_move = sum(map(len, together.values())) == len(self._shares)
        every = () if all_move else self._shares.values()
        members = Counter(id(share) for _, share in every)
        moved = {}
        for age, owns in together.items():
            share = age
            if age is not self._zero and len(owns) < members[id(age)]:
                # some of them have no gradient: they part
                _refuse_capture(self.device, "take a step with the same gradients before it")
                share = age.clone()
                self._shares.update((id(own), (own, share)) for own in owns)
            share.copy_(torch.where(happens, rule.share_after(share, decay), share))
            moved[age] = share
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
        moves: Moves,
        agreed: Agreed,
        predicted: Callable[[list[Call], Tensor, Tensor, Tensor, one_launch.Addresses], Tensor],
        grad_scale: Tensor | None = None,
        clipped_to: Tensor | float = 1.0,
    ) -> None:
        """One step of all groups, in place and without waiting for the device.

        Args:
            moves, agreed: what moves of each group, and what the ranks make of the step.
            predicted: as `Stepping._predicted`.
            grad_scale: what a gradient scaler leaves to this step, if one does.
            clipped_to: see `limit.share_left`.
        """
        now = dict(zip(_NUMBERS, self._numbers.unbind(), strict=True))
        present = [{**group, **now, "lr": self._lr_of(group)} for group in groups]
        common = present[0]
        new, window, happens, counts = advanced(common, agreed)
        shares = self._after_step(moves, window.decay(common["second_moment_window"]), happens)
        inverse = self._number(1.0 if grad_scale is None else grad_scale).reciprocal()
        rates = limit.learning_rates(present)
        calls = calls_of(present, moves, window, rates, shares.__getitem__, new["steps"])
        if common["loss_limit"] is not None:
            left = self._number(clipped_to)
            share = limit.share_left(common, left)
            total = self._number(predicted(calls, share, left, inverse, self._addresses))
            schedule = limit.share_of_peak(present)
            scale = limit.step_limit(common, window, agreed.loss, schedule, total)
            scale = torch.where(counts, scale, now["step_limit"])
            effective = limit.effective_lr(common, window, largest(rates) * scale)
            new |= {
                "step_limit": scale,
                "clipped_to": torch.where(happens, share, now["clipped_to"]),
                "effective_lr": torch.where(happens, effective, now["effective_lr"]),
            }
            calls = [call.limited(scale) for call in calls]
            self._at_floor.logical_or_(counts & (agreed.loss <= common["loss_floor"]))
        self._numbers.copy_(torch.stack([{**now, **new}[name] for name in _NUMBERS]))
        self._skipped_steps.logical_or_(agreed.loss.isnan())
        for buckets, c, _ in calls:
            each = map(self._number, one_launch.numbers_of(c, inverse, happens))
            numbers = torch.stack(list(each))
            kernels.run_on_device(buckets, c, numbers, self._skipped_elements, self._addresses)

    def _lr_of(self, group: dict[str, Any]) -> Tensor | float:
        lr = group["lr"]
        on_device = isinstance(lr, Tensor) and lr.device == self.device
        return lr.to(self._dtype) if on_device else float(lr)

    def write(self, groups: list[dict[str, Any]]) -> tuple[bool, bool, bool]:
        """Writes the numbers into the parameter groups. Waits for the device.

        Returns:
            Whether, since the last call, an element was skipped, a step skipped for its loss, and a
            loss at `loss_floor` or below it.
        """
        numbers: dict[str, Any] = dict(zip(_NUMBERS, self._numbers.tolist(), strict=True))
        numbers |= {name: int(numbers[name]) for name in COUNTS}
        numbers |= {name: None for name in LOSSES if math.isnan(numbers[name])}
        for name in ("micro_batches", "mean_micro_batches"):  # whole where ranks are alike
            if numbers[name].is_integer():
                numbers[name] = int(numbers[name])
        for group in groups:
            group.update(numbers)
        shares = list({share for _, share in self._shares.values()})
        if shares:
            now = dict(zip(shares, map(share_of, torch.stack(shares).tolist()), strict=True))
            for own, share in self._shares.values():
                if ZERO_SHARE in own:
                    own[ZERO_SHARE] = now[share]
        elements, steps, at_floor = map(bool, self._marks.tolist())
        self._marks.zero_()
        return elements, steps, at_floor


def _refuse_capture(
    device: torch.device, remedy: str = "take a few steps before it: they make state and kernels"
) -> None:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"a CUDA graph is captured: {remedy}")


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
