"""What DWMGrad does over a whole history, in NumPy's float64: which loss, which window, which step.

Written from the paper's Algorithm 1 (arXiv 2510.25042) and from what README.md and the docstrings
promise; nothing of dwmgrad is imported. `rule.py` has the rule alone, for one parameter vector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

BACKWARD, OBSERVE, GIVEN = "accelerator.backward", "observe_loss", "an argument of step"


class Refused(Exception):
    """The optimizer, or torch, raises here; the message matches this pattern."""


@dataclass(eq=False)
class Param:
    """A parameter of the model, whether or not an optimizer has it."""

    value: np.ndarray
    trained: bool = True
    grad: np.ndarray | None = None  # float32: as torch adds micro-batches up
    sparse: bool = False  # its gradient is, which is refused
    v: np.ndarray | None = None  # None: it has no state yet
    s: np.ndarray | None = None
    weight: float = 1.0  # the sum of the weights of s; 1: not to be corrected
    others: bool = False  # whether others keep something in its state

    def begin(self, corrected: bool) -> None:
        """The state of a parameter that has none."""
        if self.v is None:
            self.v, self.s = np.zeros_like(self.value), np.zeros_like(self.value)
            self.weight = 0.0 if corrected else 1.0

    def lose_state(self) -> None:
        """`del optimizer.state[parameter]`."""
        self.v = self.s = None
        self.others = False


@dataclass
class Group:
    members: list[int]
    lr: float
    weight_decay: float
    momentum: float
    eps: float
    maximize: bool


@dataclass
class Window:
    """One for the whole optimizer: Algorithm 1, steps 1 and 2."""

    size: int
    most: int
    signal: str
    smoothing: float
    last_loss: float | None = None
    mean_loss: float | None = None
    observations: int = 0
    increases: int = 0
    micro_batches: int = 0  # of the last loss
    mean_micro_batches: int = 0  # of those in the mean
    passed_over: int = 0  # losses in a row of other numbers
    steps: int = 0

    def observe(self, loss: float, micro_batches: int) -> None:
        like_the_last = self.micro_batches in (0, micro_batches)
        if self.mean_micro_batches not in (0, micro_batches) and like_the_last:
            self.mean_loss, self.mean_micro_batches = self.last_loss, micro_batches
        if self.mean_micro_batches in (0, micro_batches):
            mean = loss
            if self.smoothing and self.mean_loss is not None:
                mean = self.smoothing * self.mean_loss + (1 - self.smoothing) * loss
            beta = {
                "decrease": 0.0 if self.mean_loss is None else self.mean_loss - mean,
                "increase": mean - (self.mean_loss or 0.0),
                "loss": mean,
            }[self.signal]
            grows = beta > 0
            self.size = min(self.size + 1, self.most) if grows else max(self.size - 1, 1)
            self.increases += grows
            self.mean_loss, self.mean_micro_batches = mean, micro_batches
            self.passed_over = 0
        else:
            if self.signal == "loss":
                self.size = min(self.size + 1, self.most) if loss > 0 else max(self.size - 1, 1)
                self.increases += loss > 0
            self.passed_over += 1
            if self.passed_over == 8:
                self.mean_loss, self.mean_micro_batches = loss, micro_batches
                self.passed_over = 0
        self.last_loss, self.micro_batches = loss, micro_batches
        self.observations += 1


@dataclass
class Losses:
    """Those that wait for the step to come; all came on one route."""

    route: str = ""
    values: list[float] = field(default_factory=list)
    had_gradients: bool = False  # after the last backward pass,
    had_numbers: bool = False  # and one was not 0


class Oracle:
    """A model, its gradients and its DWMGrad.

    Args:
        params: the model's parameters, also those that the optimizer does not have.
        groups: the optimizer's.
        window: before the first step.
        second: `second_moment_window`.
        corrects: `bias_correction`.
        normalizes: `normalize_momentum`.
        missing: `missing_loss`.
        on_device: `capturable`.
        in_company: whether the accelerator has another optimizer, too.
    """

    def __init__(
        self,
        params: list[Param],
        groups: list[Group],
        window: Window,
        *,
        second: int | None,
        corrects: bool,
        normalizes: bool,
        missing: str,
        on_device: bool,
        in_company: bool,
    ) -> None:
        self.params, self.groups, self.window = params, groups, window
        self.second, self.corrects, self.normalizes = second, corrects, normalizes
        self.missing, self.on_device, self.in_company = missing, on_device, in_company
        self.losses = Losses()
        self.next_begins_anew = False  # the last step was refused, or skipped by a scaler
        self.tried = False  # a step, also one that was skipped

    # ---- the model ----

    def own(self) -> list[Param]:
        """The optimizer's parameters."""
        return [self.params[index] for group in self.groups for index in group.members]

    def differentiate(self, gradients: dict[int, np.ndarray], factor: float) -> None:
        """A backward pass of the factor times a loss with these gradients."""
        reached = {at: g for at, g in gradients.items() if self.params[at].trained}
        if not reached:
            raise Refused("does not require grad")
        for at, gradient in reached.items():
            param = self.params[at]
            before = 0 if param.grad is None else param.grad
            param.grad = np.asarray(before + np.float32(factor) * gradient)

    # ---- the losses ----

    def backward(
        self, loss: float, gradients: dict[int, np.ndarray] | None, divisor: int, scale: float
    ) -> None:
        """`accelerator.backward(loss)`; without gradients it fails."""
        self.drop_lost()
        if not self.in_company:
            self.expect(BACKWARD)
        if gradients is None:
            raise Failed
        self.differentiate(gradients, scale / divisor)
        own = {index for group in self.groups for index in group.members}
        reached = [self.params[at] for at in gradients if at in own and self.params[at].trained]
        if not reached:
            return  # it is another one's
        if self.in_company:
            self.expect(BACKWARD)
        self.losses.route = BACKWARD
        self.losses.values.append(loss / divisor)
        self.losses.had_gradients = True
        self.losses.had_numbers = any(param.grad.any() for param in reached)

    def observe(self, loss: float) -> None:
        """`optimizer.observe_loss(loss)`."""
        self.drop_lost()
        self.expect(OBSERVE)
        self.losses.route = OBSERVE
        self.losses.values.append(loss)

    def expect(self, route: str) -> None:
        """A loss is about to come."""
        if self.next_begins_anew:
            self.next_begins_anew = False
            if self.losses.route != BACKWARD:  # whose gradients are still there
                self.discard()
        if self.losses.values and self.losses.route != route:
            raise Refused("keep one of the two")

    def discard(self) -> None:
        """`optimizer.discard_loss()`."""
        self.losses = Losses()

    def drop_lost(self) -> None:
        """What was differentiated, and has no gradients left, leaves no loss."""
        waiting = self.losses
        if waiting.route != BACKWARD:
            return
        grads = [param.grad for param in self.own() if param.grad is not None]
        if (waiting.had_gradients and not grads) or (
            waiting.had_numbers and not any(grad.any() for grad in grads)
        ):
            self.discard()

    def zero_grad(self, set_to_none: bool) -> None:
        """`optimizer.zero_grad()`."""
        if self.losses.route == BACKWARD:
            self.discard()
        for param in self.own():
            clear_grad(param, set_to_none)

    def skip(self) -> None:
        """A gradient scaler gives the step up."""
        self.discard()

    # ---- the step ----

    def step(
        self,
        closure: Callable[[], float | None] | None = None,
        loss: float | None = None,
        scaled: bool = False,
        overflows: bool = False,
    ) -> None:
        """`optimizer.step()`; if it raises, nothing has moved.

        A gradient scaler may leave it to the step to do nothing where gradients overflow.
        """
        self.next_begins_anew = False
        try:
            losses = self._take(closure, loss, scaled)
            moves = self._decide(losses) and not overflows
        except Exception:
            self.next_begins_anew = closure is None and loss is None
            raise
        self.discard()
        if moves:
            self._move(losses)

    def _take(
        self, closure: Callable[[], float | None] | None, loss: float | None, scaled: bool
    ) -> list[float]:
        self.drop_lost()
        if closure is None:
            if loss is None:
                return self.losses.values
            if self.losses.values:
                raise Refused("keep one of the two")
            return [loss]
        observed = self.losses.route == OBSERVE
        before = [param.grad for param in self.own()]
        returned = closure()
        changed = any(p.grad is not g for p, g in zip(self.own(), before, strict=True))
        if scaled and changed:
            raise Refused("gradients are scaled")
        self.drop_lost()
        if returned is not None and observed:
            raise Refused("keep one of the two")
        if returned is None or self.losses.values:
            return self.losses.values
        return [returned]

    def _decide(self, losses: list[float]) -> bool:
        """Whether the step moves anything."""
        for group in self.groups:
            if not 0 <= group.lr < np.inf:
                raise Refused("lr of parameter group")
        grads = [p.grad for p in self.own() if p.grad is not None]
        makes_state = (
            not losses
            and bool(grads)
            and all(param.v is None for param in self.params)
            and all(group.lr == 0 for group in self.groups)
            and not any(grad.any() for grad in grads)
        )
        idle = not losses and not grads
        if not losses and not idle and not makes_state and self.missing == "error":
            raise Refused("got no loss")
        skips = bool(losses) and not np.isfinite(sum(losses))
        if (idle or skips) and not makes_state and not self.on_device:
            return False
        if any(param.sparse for param in self.own()):
            raise Refused("dense")
        begins_late = self.tried if self.on_device else self.window.steps > 0
        for param in self.own():
            if param.trained or param.grad is not None:
                param.begin(self.corrects or begins_late)
        self.tried |= not makes_state
        return not (idle or skips or makes_state)

    def _move(self, losses: list[float]) -> None:
        window = self.window
        window.steps += 1
        if losses:
            window.observe(sum(losses), len(losses))
        for group in self.groups:
            for param in map(self.params.__getitem__, group.members):
                if param.grad is not None:
                    self._update(param, group)

    @np.errstate(all="ignore")
    def _update(self, param: Param, group: Group) -> None:
        """Algorithm 1, steps 3 to 6, for the elements whose gradient can be squared."""
        takes = np.isfinite(np.square(param.grad))  # in float32
        g = np.where(takes, param.grad, 0).astype(np.float64)
        if group.maximize:
            g = -g
        w = self.window.size
        long = self.second or w
        mu = group.momentum * w / self.window.most
        s = param.s * (long - 1) / long + g**2 / long
        param.weight = param.weight * (long - 1) / long + 1 / long
        alpha = group.lr
        if self.normalizes:
            half = group.momentum / 2
            alpha *= (1 - half) * np.sqrt((1 - mu**2) / (1 - half**2))
        v = mu * param.v + alpha * g / (np.sqrt(s / param.weight) + group.eps)
        value = param.value * (1 - group.lr * group.weight_decay) - v
        param.s = np.where(takes, s, param.s)
        param.v = np.where(takes, v, param.v)
        param.value = np.where(takes, value, param.value)

    # ---- checkpoints ----

    def after_loading(self, saved: Oracle, is_new: bool) -> Oracle:
        """What an optimizer and a model are that load what was saved; gradients stay.

        So do the losses that came with them, unless the optimizer is a new one.
        """
        loaded, waiting = copy.deepcopy(saved), self.losses
        for param, now in zip(loaded.params, self.params, strict=True):
            param.grad, param.trained = now.grad, now.trained
        loaded.discard()
        if waiting.route == BACKWARD and not is_new:
            loaded.losses = waiting
        loaded.next_begins_anew = False
        loaded.tried = loaded.window.steps > 0
        return loaded


class Failed(Exception):
    """A backward pass, or a closure, that fails by itself."""


def clear_grad(param: Param, set_to_none: bool) -> None:
    """`p.grad = None`, or `p.grad.zero_()`."""
    if param.grad is not None:
        param.grad = None if set_to_none else np.zeros_like(param.grad)
