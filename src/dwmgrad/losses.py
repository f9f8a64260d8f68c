"""How a step's loss gets in, and which losses wait for the step to come.

The losses that wait are those whose gradients are in `.grad`: what is differentiated adds up, and
what is dropped together with its gradients, or never reached them, is not there.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .gradient_trace import Trace, are_changed, marks
from .scalars import where

BACKWARD = "accelerator.backward()"
LIGHTNING = "Lightning's backward()"
OBSERVE = "observe_loss()"
CLOSURE = "step(closure)"
ARGUMENT = "step(loss=...)"
WITH_GRADIENTS = (BACKWARD, LIGHTNING)
"""The routes on which a loss comes together with its gradients, and goes with them."""


@dataclass
class Observation:
    """The loss of one optimizer step: the sum of what its micro-batches brought.

    A used observation stays for further `step()` calls of the same logical step: DeepSpeed makes
    one per parameter group or per sub-group.
    """

    route: str  # who brings the losses
    loss: Tensor | float  # their sum, on this rank
    micro_batches: int = 1  # how many they are
    agreed: Any = None  # what the ranks have made of it, once they have
    used: bool = False  # whether a step has taken it
    stands_out: bool = False  # whether the optimizer's guard refuses the loss; on the host alone
    limited: dict[str, float] | None = None  # what the first of several steps made of `loss_limit`
    _stepped: set[int] = field(default_factory=set)
    moved: set[int] = field(default_factory=set)  # ids of groups: it moves a window once

    def plus(self, loss: Tensor | float) -> Observation:
        """The observation with one more micro-batch, on the device of the first one."""
        if isinstance(self.loss, Tensor) and isinstance(loss, Tensor):
            loss = loss.to(self.loss.device)
        return Observation(self.route, self.loss + loss, self.micro_batches + 1)

    def repeats(self, groups: list[dict[str, Any]]) -> bool:
        """Whether parameters of these groups were stepped with this observation before."""
        keys = _keys(groups)
        return any(key in self._stepped for key in keys) if keys else self.used

    def use(self, groups: list[dict[str, Any]]) -> None:
        """A step of these groups takes it."""
        self.used = True
        self._stepped.update(_keys(groups))


def _keys(groups: list[dict[str, Any]]) -> list[int]:
    return [id(param) for group in groups for param in group["params"]]


class LossFeed:
    """Holds the observation of the step to come, and of the step just made."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets all. Lightning's and Fabric's wrappers hold the same feed as the optimizer."""
        self.observation: Observation | None = None  # the latest one, used or still open
        self.ahead: Any = None  # what ranks agreed on before a step without one, while it is made
        self.step_tried = False  # a gradient scaler has asked for a step that has not come since
        self.refused = False  # the last step raised: the next loss belongs to another one
        self.trace: Trace | None = None  # of the gradients of the losses that wait
        self.clipped_to: Tensor | float = 1.0  # of the step to come; see `limit.share_left`
        self._put_aside: Tensor | float | None = None
        self._said_coarse = False

    def begin_anew(self) -> None:
        """For an optimizer that is made, or loaded: then gradients stay, and so do their losses."""
        held = self.observation
        if held is None or not _waits_with_gradients(held):
            self.clear()
        else:  # what a step that raised has made of it is void
            self.observation = Observation(held.route, held.loss, held.micro_batches)
            self.ahead = None

    @property
    def waiting(self) -> Observation | None:
        """The losses that have come and that no step has used yet; None without any."""
        held = self.observation
        return None if held is None or held.used else held

    def expect(self, route: str) -> None:
        """Makes ready for a loss on this route.

        Raises:
            RuntimeError: if this step's loss comes on another route already.
        """
        if self.step_tried or self.refused:
            # skipped by a gradient scaler; else raised: what was differentiated is still in .grad
            self.discard(None if self.step_tried else [OBSERVE])
            self._put_aside = None
            self.step_tried = self.refused = False
        if self.waiting is not None and self.waiting.route != route:
            raise RuntimeError(_two_routes(self.waiting.route, route))

    def add(self, loss: Tensor | float, route: str) -> None:
        """Adds a micro-batch's loss, in memory of its own, on a route that was expected."""
        known = self.waiting
        self.observation = Observation(route, loss) if known is None else known.plus(loss)

    def discard(self, routes: Iterable[str] | None = None) -> None:
        """Drops the losses that no step has used; with routes, those that came on one of them."""
        if self.waiting is not None and (routes is None or self.waiting.route in routes):
            self.observation = None
            self.trace = None

    def undo(self, before: Observation | None) -> None:
        """After a step that raised: takes back what it brought, for one that had `before`.

        What a closure did to gradients stays, and with it what it did to their losses.
        """
        if not _waits_with_gradients(self.observation):
            self.observation = None if _waits_with_gradients(before) else before

    def discard_dropped(self, groups: list[dict[str, Any]]) -> None:
        """Drops the losses whose gradients were dropped, by `model.zero_grad()` for one."""
        if self.trace is not None and self.waiting and self.trace.is_lost(groups):
            self.discard(WITH_GRADIENTS)
            self.drop_clipping()

    def scaler_asks(self) -> None:
        """A gradient scaler is about to make the step, or to skip it."""
        if self.step_tried:  # skipped before, and no loss has come since
            self.discard()
        self.step_tried = True
        self.ahead = None
        self.put_clipping_aside()

    def clip(self, share: Tensor | float) -> None:
        """Clipping has left this share of the gradients; of several, the smallest counts.

        What becomes of the gradients after it is looked at anew: an infinite norm leaves zeros.
        """
        if isinstance(self.clipped_to, Tensor) and isinstance(share, Tensor):
            share = share.to(self.clipped_to.device)
        self.clipped_to = where(share < self.clipped_to, share, self.clipped_to)
        self._put_aside = None
        if self.trace is not None:
            self.trace.look_again()

    def drop_clipping(self) -> None:
        """The gradients that were clipped are given up."""
        self.clipped_to, self._put_aside = 1.0, None

    def put_clipping_aside(self) -> None:
        """For a step that may not come; if it does, `begin_step` brings it back."""
        self._put_aside, self.clipped_to = self.clipped_to, 1.0

    def begin_step(self) -> bool:
        """A step has come; returns whether a gradient scaler makes it."""
        scaled, self.step_tried, self.refused = self.step_tried, False, False
        if self._put_aside is not None:
            self.clipped_to, self._put_aside = self._put_aside, None
        return scaled

    def take(
        self,
        closure: Callable[[], Any] | None,
        loss: Tensor | float | None,
        scaled: bool,
        groups: list[dict[str, Any]],
    ) -> Any:
        """Observes, and returns, the loss of `step(closure)` or `step(loss=loss)`, if there is one.

        A closure may bring no loss, and return None; or bring it by a backward pass that is seen
        here. What it returns is then for the caller alone. `scaled`: by a gradient scaler.
        """
        self.discard_dropped(groups)
        if closure is None:
            if loss is not None:
                if self.waiting is not None:
                    raise RuntimeError(_two_routes(self.waiting.route, ARGUMENT))
                self.observation = Observation(ARGUMENT, self.checked(loss))
            return loss
        if loss is not None:
            raise RuntimeError("step() got both a closure and loss=: keep one of the two")
        if not callable(closure):
            is_loss = isinstance(closure, (Tensor, Real))
            hint = ": write step(loss=loss)" if is_loss else ""
            raise TypeError(
                f"step() takes a closure as its first argument, got {type(closure).__name__}{hint}"
            )
        before = self.waiting
        returned = _call(closure, scaled, groups)
        self.discard_dropped(groups)
        if returned is None:
            return None
        if self.waiting is None:
            self.observation = Observation(CLOSURE, self.checked(returned))
        elif self.waiting.route == OBSERVE:
            if before is not None:
                raise RuntimeError(_two_routes(OBSERVE, CLOSURE))
            raise RuntimeError(f"the loss came through {CLOSURE} and, inside it, {OBSERVE}")
        return returned

    def checked(self, loss: Any) -> Tensor | float:
        """A loss as a float32 or float64 scalar tensor of its own, or as a Python float.

        The caller may do with his tensor what he likes: log it in percent, or reduce it in place.

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
            self.say_if_coarse(loss)
            return copied(loss)
        if isinstance(loss, bool) or not isinstance(loss, Real):
            raise TypeError(
                f"loss must be a tensor or a number, got {loss!r} ({type(loss).__name__})"
            )
        try:
            return float(loss)
        except OverflowError:
            return math.inf

    def say_if_coarse(self, loss: Tensor, stacklevel: int = 4) -> None:
        """Warns of a 16-bit loss, once."""
        if loss.dtype in (torch.float16, torch.bfloat16) and not self._said_coarse:
            self._said_coarse = True
            warnings.warn(
                f"the loss is {loss.dtype}: so coarse that many batches tie, and a tie shrinks the "
                "window. Compute the loss in float32 (autocast does).",
                stacklevel=stacklevel,
            )


@contextlib.contextmanager
def brought(
    optimizers: list[Any],
    loss: Any,
    route: str,
    *,
    gradient: Tensor | None = None,
    divisor: int = 1,
    only: bool = False,
    alone: bool = False,
    steps_inside: bool = False,
) -> Iterator[None]:
    """Around a backward pass: hands its loss to those optimizers whose gradients it changes.

    A backward pass that raises brings nothing; the losses of earlier ones stay.

    Args:
        optimizers: DWMGrad optimizers that it may concern.
        loss: what is differentiated; a tensor of several elements has a `gradient`.
        route: who brings it.
        gradient: the weights of the loss's elements, as in `Tensor.backward`.
        divisor: what the host divides the loss by before it differentiates it.
        only: the host has no other optimizer, so that a loss on a second route is refused before
            the backward pass.
        alone: there is one optimizer, and the loss is its, also where nothing is to be seen in
            `.grad`: FSDP2 and DeepSpeed keep gradients elsewhere until the step.
        steps_inside: the optimizer's step is made inside of the backward pass.
    """
    value = _differentiated(loss, gradient, divisor)
    for optimizer in optimizers:
        optimizer._feed.discard_dropped(optimizer.param_groups)
        if only or alone:
            optimizer._feed.expect(route)
    if steps_inside:
        with _used_inside(optimizers, loss, value, route):
            yield
        return
    before = [marks(optimizer.param_groups) for optimizer in optimizers]
    yield
    if value is None:
        return
    for optimizer, own in zip(optimizers, before, strict=True):
        if alone or are_changed(optimizer.param_groups, own):
            feed = optimizer._feed
            feed.say_if_coarse(loss, stacklevel=6)
            feed.expect(route)
            feed.add(value, route)
            feed.trace = Trace(optimizer.param_groups, own)


@contextlib.contextmanager
def _used_inside(
    optimizers: list[Any], loss: Any, value: Tensor | None, route: str
) -> Iterator[None]:
    """Around a backward pass that makes the step itself: the loss is there before it."""
    pending = [optimizer._feed.observation for optimizer in optimizers]
    for optimizer in optimizers:
        if value is not None:
            optimizer._feed.say_if_coarse(loss, stacklevel=8)
            optimizer._feed.add(value, route)
    try:
        yield
    except BaseException:
        for optimizer, earlier in zip(optimizers, pending, strict=True):
            if optimizer._feed.waiting:
                optimizer._feed.observation = earlier
        raise


def _differentiated(loss: Any, gradient: Tensor | None, divisor: int) -> Tensor | None:
    """The number whose gradient a backward pass computes; None for what it will refuse."""
    if not isinstance(loss, Tensor) or (gradient is None and loss.is_complex()):
        return None
    if gradient is not None:
        product = loss.detach() * gradient.detach().conj()
        loss = (product.real if product.is_complex() else product).sum()
    if loss.numel() != 1:
        return None
    value = copied(loss)
    return value if divisor == 1 else value / divisor


def copied(loss: Tensor) -> Tensor:
    """A tensor with one element, detached, in float32 at least, in memory of its own."""
    loss = loss.detach()
    if type(loss) is not Tensor and hasattr(loss, "full_tensor"):
        loss = loss.full_tensor()  # a DTensor, which every rank of its mesh brings
    wide = torch.float64 if loss.dtype == torch.float64 else torch.float32
    loss = loss.to(wide, copy=True)
    return loss if loss.dim() == 0 else loss.reshape(())


def _call(closure: Callable[[], Any], scaled: bool, groups: list[dict[str, Any]]) -> Any:
    before = marks(groups) if scaled else None
    with torch.enable_grad():
        loss = closure()
    if before is not None and are_changed(groups, before):
        raise RuntimeError(
            "step(closure): the closure ran backward() under a gradient scaler, so its gradients "
            "are scaled. Run forward and backward before scaler.step() and let the closure return "
            "the loss alone, or call observe_loss()"
        )
    return loss


def _waits_with_gradients(observation: Observation | None) -> bool:
    return observation is not None and not observation.used and observation.route in WITH_GRADIENTS


def _two_routes(first: str, second: str) -> str:
    return (
        f"this step's loss came through {first} already and now comes through {second} too: "
        "keep one of the two"
    )
