"""How a step's loss gets in: one of four routes, the same one throughout a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .observation import Observation

BACKWARD = "accelerator.backward()"
"""The route of a loss that Accelerate brings, together with its gradients."""
OBSERVE = "observe_loss()"
CLOSURE = "step(closure)"
ARGUMENT = "step(loss=...)"


class LossFeed:
    """Holds the observation of the step to come, and of the step just made.

    Attributes:
        observation: the latest one, settled or still open; None without one.
        step_tried: whether a gradient scaler has asked for a step that has not come since.
        refused: whether the last step raised; the next loss belongs to another one.
    """

    def __init__(self) -> None:
        self.observation: Observation | None = None
        self.step_tried = False
        self.refused = False

    @property
    def is_open(self) -> bool:
        """Whether losses have come that no step has used yet."""
        return self.observation is not None and not self.observation.settled

    def observe(self, loss: Tensor | float, route: str, average: bool = False) -> None:
        """Adds one micro-batch's loss to the open observation, or opens one.

        Raises:
            TypeError, ValueError: if it is not one real number.
            RuntimeError: if this step's loss comes on another route already.
        """
        if self.step_tried or self.refused:  # skipped by a gradient scaler, or raised
            self.step_tried = self.refused = False
            self.discard()
        observation = self.observation
        if observation is None or observation.settled:
            observation = Observation(route, average)
        elif observation.route != route:
            raise RuntimeError(_two_routes(observation.route, route))
        observation.add(loss)
        self.observation = observation

    def discard(self, route: str | None = None) -> None:
        """Drops the losses that no step has used; with a route, those that came on it."""
        if self.is_open and (route is None or self.observation.route == route):  # type: ignore[union-attr]
            self.observation = None

    def scaler_asks(self) -> None:
        """A gradient scaler is about to make the step, or to skip it."""
        if self.step_tried:  # skipped before, and no loss has come since
            self.discard()
        self.step_tried = True

    def take(
        self,
        closure: Callable[[], Any] | None,
        loss: Tensor | float | None,
        scaled: bool,
        parameters: Iterable[Tensor],
    ) -> Tensor | float:
        """The loss of `step(closure)` or `step(loss=loss)`, observed.

        Args:
            closure, loss: what `step` got, at least one of the two.
            scaled: whether a gradient scaler makes this step.
            parameters: those of the optimizer, to see whether the closure runs backward().

        Returns:
            The closure's loss, or `loss`.
        """
        route = ARGUMENT if closure is None else CLOSURE
        if closure is not None and loss is not None:
            raise RuntimeError("step() got both a closure and loss=: keep one of the two")
        before = self.observation
        if self.is_open:
            raise RuntimeError(_two_routes(before.route, route))  # type: ignore[union-attr]
        if closure is not None:
            loss = _call(closure, scaled, list(parameters))
            inner = self.observation
            if inner is not None and inner is not before:  # came from within the closure
                if inner.route != OBSERVE:
                    return loss
                raise RuntimeError(f"the loss came through {route} and, inside it, {inner.route}")
        observation = Observation(route)
        observation.add(loss)  # type: ignore[arg-type]
        self.observation = observation
        return loss  # type: ignore[return-value]


def _call(closure: Callable[[], Any], scaled: bool, parameters: list[Tensor]) -> Any:
    versions = _versions(parameters) if scaled else None
    with torch.enable_grad():
        loss = closure()
    if loss is None:
        raise TypeError("step(closure): the closure must return the loss, got None")
    if versions is not None and versions != _versions(parameters):
        raise RuntimeError(
            "step(closure): the closure ran backward() under a gradient scaler, so its gradients "
            "are scaled. Run forward and backward before scaler.step() and let the closure return "
            "the loss alone, or call observe_loss()"
        )
    return loss


def _versions(parameters: list[Tensor]) -> list[tuple[int, int]]:
    grads = (p.grad for p in parameters)
    return [(id(grad), grad._version) for grad in grads if grad is not None]


def _two_routes(first: str, second: str) -> str:
    return (
        f"this step's loss came through {first} already and now comes through {second} too: "
        "keep one of the two"
    )
