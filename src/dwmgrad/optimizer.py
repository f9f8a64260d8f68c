"""The optimizer: its arguments, its state, and the step."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import arguments, checkpoint, kernels
from .distributed import mean_over_ranks
from .observation import BACKWARD, Observation
from .window import Window


class DWMGrad(Optimizer):
    r"""RMSprop with momentum, whose memory :math:`\omega` follows the training loss.

    With the loss :math:`\ell_t` and the gradient :math:`g_t`, one step is

    .. math::
        \omega &\leftarrow \min(\omega + 1, \delta) \text{ if the signal is positive, else }
            \max(\omega - 1, 1) \\
        s &\leftarrow s(\omega - 1)/\omega + g_t^2/\omega \\
        v &\leftarrow (\gamma\omega/\delta)\,v + \alpha g_t/(\sqrt{s} + \epsilon) \\
        \theta &\leftarrow (1 - \alpha\lambda)\,\theta - v

    Source: Wang, Li, Zeng, "Dynamically Weighted Momentum with Adaptive Step Sizes for Efficient
    Deep Network Training", arXiv 2510.25042, Algorithm 1; decoupled weight decay as in AdamW.

    The loss reaches the optimizer on one of these routes, the same one throughout a step:
    `accelerator.backward(loss)` and the Hugging Face Trainer bring it by themselves;
    `observe_loss(loss)` before `step()`; `step(closure)`; `step(loss=loss)`. A loss that is not
    finite skips the whole step: parameters, state and window stay as they are.

    Args:
        params: parameters, or dicts of parameter groups. A group may have its own lr,
            weight_decay, momentum, eps and maximize; the window is one for the whole optimizer.
        lr: learning rate α, a float or a 0-dim tensor (read by the host at every step). A
            gradient's total effect is α/(1 - momentum·window/max_window): up to 10 α.
        momentum: base momentum γ, in [0, 1).
        eps: ε, added to the root of the mean square, outside of it.
        weight_decay: decoupled weight decay λ.
        initial_window: the window ω before the first step, in steps.
        max_window: the window's upper bound δ, in steps.
        window_signal: `"decrease"`, `"increase"` or `"loss"`; see `dwmgrad.window.Window`.
        maximize: ascend the gradient. The window still reads the loss as it is given.
        foreach: True prefers the multi-tensor kernel, False excludes it.
        fused: True prefers the fused kernel, False excludes it. None, for both: the fastest that
            is right for each tensor.
        missing_loss: what a step without a loss does. `"warn"`: holds the window and says so once.
            `"hold"`: holds it in silence. `"error"`: raises, before anything has changed. Where
            every lr and every gradient is 0, a step without a loss holds the window in silence:
            that is how `torch.distributed.checkpoint` creates the state.

    Raises:
        TypeError, ValueError: for an argument out of range; the message names it and its value.
    """

    _observation: Observation | None
    _step_tried: bool
    _said: set[str]

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        initial_window: int = 5,
        max_window: int = 10,
        window_signal: str = "decrease",
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        missing_loss: str = "warn",
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_window": initial_window,
            "max_window": max_window,
            "window_signal": window_signal,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "missing_loss": missing_loss,
        }
        arguments.check(defaults)
        defaults = arguments.plain(defaults)
        # The window lives as plain numbers in every group: nothing else survives all the ways in
        # which state dicts are sharded, flattened and reloaded.
        defaults |= checkpoint.initial_progress(initial_window)
        self._forget_losses()
        super().__init__(params, defaults)

    # ---- what to look at ----

    @property
    def window(self) -> int:
        """The present window ω, in steps."""
        return self.param_groups[0]["window"]

    @property
    def effective_momentum(self) -> float:
        """γω/δ of the first parameter group."""
        group = self.param_groups[0]
        return _window_of(group).momentum(group["momentum"])

    @property
    def last_loss(self) -> float | None:
        """The loss that moved the window last, the mean over ranks; None before the first."""
        return self.param_groups[0]["last_loss"]

    # ---- the loss ----

    def observe_loss(self, loss: Tensor | float) -> None:
        """Brings one micro-batch's loss, before `step()`.

        Call it once per micro-batch, with the loss divided as its gradients are, so that the
        losses of a step add up to that of its effective batch. The loss is unscaled (a gradient
        scaler's factor is not in it), of this rank alone, and may be attached to a graph.

        Args:
            loss: a tensor with one element, or a number.

        Raises:
            TypeError, ValueError: if it is not one real number.
            RuntimeError: if this step's loss comes on another route already.
        """
        self._observe(loss, route="observe_loss()")

    def discard_loss(self) -> None:
        """Drops the losses observed since the last step, for a step that is given up.

        Not needed where a gradient scaler skips the step: the optimizer notices that by itself.
        """
        if self._observation is not None and not self._observation.settled:
            self._observation = None

    def _observe(self, loss: Tensor | float, route: str, average: bool = False) -> None:
        if self._step_tried:  # and skipped by a gradient scaler, or refused
            self._step_tried = False
            self.discard_loss()
        observation = self._observation
        if observation is None or observation.settled:
            observation = Observation(route, average)
        elif observation.route != route:
            raise RuntimeError(
                f"this step's loss came through {observation.route} already and now comes through "
                f"{route} too: keep one of the two"
            )
        observation.add(loss)
        self._observation = observation

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler.step() reads this name just before it either calls step() or skips it, which
        # is the only trace that a skipped step leaves here.
        if isinstance(sys._getframe(1).f_locals.get("self"), torch.amp.GradScaler):
            if self._step_tried:  # skipped before, and no loss has come since
                self.discard_loss()
            self._step_tried = True
        return False

    def _forget_losses(self) -> None:
        self._observation = None
        self._step_tried = False
        self._said = set()

    # ---- the step ----

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Tensor | float] | None = None,
        *,
        loss: Tensor | float | None = None,
    ) -> Any:
        """One step of the rule.

        Args:
            closure: computes the loss, with or without its backward pass, and returns it.
            loss: the loss of the step's effective batch.

        Returns:
            What the closure returned, or `loss`.

        Raises:
            RuntimeError: if the step's loss comes on two routes, if there is none and
                `missing_loss="error"`, or if a gradient is sparse.
            TypeError, ValueError: if the loss is not one real number, or a lr is not finite.

        Whatever it raises, parameters, state and window are as before.
        """
        scaled, self._step_tried = self._step_tried, False
        brings_loss = closure is not None or loss is not None
        pending = self._observation
        try:
            if brings_loss:
                loss = self._loss_of_call(closure, loss, scaled)
            self._check_before_change()
            observation, value = self._settle()
        except BaseException:
            self._observation = pending
            self._step_tried = not brings_loss  # the next loss belongs to another step
            raise
        if value is not None and math.isnan(value):
            self._say_once("the loss is not finite: this step is skipped, nothing has changed")
            return loss
        for group in self.param_groups:
            window = _window_of(group)
            if value is not None and observation is not None and observation.moves(group):
                window.observe(value)
                group.update(checkpoint.progress_of(window))
            kernels.update(
                *self._tensors_of(group),
                _coefficients(group, window),
                use_foreach=group["foreach"],
                use_fused=group["fused"],
            )
        return loss

    def _loss_of_call(
        self, closure: Callable[[], Any] | None, loss: Any, scaled: bool
    ) -> Tensor | float:
        """Makes the observation of `step(closure)` or `step(loss=loss)`; returns the loss."""
        route = "step(loss=...)" if closure is None else "step(closure)"
        if closure is not None and loss is not None:
            raise RuntimeError("step() got both a closure and loss=: keep one of the two")
        pending = self._observation
        if pending is not None and not pending.settled:
            raise RuntimeError(
                f"this step's loss came through {pending.route} already and now comes through "
                f"{route} too: keep one of the two"
            )
        if closure is not None:
            versions = self._gradient_versions() if scaled else None
            with torch.enable_grad():
                loss = closure()
            if loss is None:
                raise TypeError("step(closure): the closure must return the loss, got None")
            if versions is not None and versions != self._gradient_versions():
                raise RuntimeError(
                    "step(closure): the closure ran backward() under a gradient scaler, so its "
                    "gradients are scaled. Run forward and backward before scaler.step() and let "
                    "the closure return the loss alone, or call observe_loss()"
                )
            inner = self._observation
            if inner is not None and inner is not pending:  # fed by accelerator.backward() in there
                if inner.route != "observe_loss()":
                    return loss
                raise RuntimeError(f"the loss came through {route} and, inside it, {inner.route}")
        observation = Observation(route)
        observation.add(loss)
        self._observation = observation
        return loss

    def _gradient_versions(self) -> list[tuple[int, int]]:
        grads = (p.grad for group in self.param_groups for p in group["params"])
        return [(id(grad), grad._version) for grad in grads if grad is not None]

    def _settle(self) -> tuple[Observation | None, float | None]:
        """The step's observation and loss, the same on every rank.

        The loss is None without one and NaN if it is not finite.
        """
        observation: Observation | None = self._observation
        if observation is not None and observation.repeats(self.param_groups):
            observation = None  # it belonged to the step before
        device = next(
            (p.device for g in self.param_groups for p in g["params"]), torch.device("cpu")
        )
        value = None
        if observation is not None:
            value = observation.settle(device)
            observation.mark_stepped(self.param_groups)
        elif self._creates_state():
            return None, None  # a rank may do that alone, so no all-reduce
        else:
            value = mean_over_ranks(None, device)
        if value is None:
            self._go_without_loss()
        return observation, value

    def _creates_state(self) -> bool:
        """Whether this is how torch.distributed.checkpoint makes state: no loss, lr and grads 0."""
        if any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        grads = (p.grad for group in self.param_groups for p in group["params"])
        return not any(
            (grad.to_local() if hasattr(grad, "to_local") else grad).any()
            for grad in grads
            if grad is not None
        )

    def _go_without_loss(self) -> None:
        policy = self.param_groups[0]["missing_loss"]
        if policy == "hold":
            return
        message = (
            "step() got no loss, so the window holds. accelerator.backward(loss) brings it by "
            "itself; elsewhere call optimizer.observe_loss(loss) before step(), or "
            'step(loss=loss). missing_loss="hold" silences this.'
        )
        if policy == "error":
            raise RuntimeError(message)
        self._say_once(message)

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)

    def _check_before_change(self) -> None:
        for index, group in enumerate(self.param_groups):
            if not 0 <= float(group["lr"]) < math.inf:
                raise ValueError(
                    f"lr of parameter group {index} must be in [0, inf), got {group['lr']}"
                )
            for param in group["params"]:
                if param.grad is not None and param.grad.layout is not torch.strided:
                    raise RuntimeError(
                        f"DWMGrad takes dense gradients, got {param.grad.layout} for a parameter "
                        f"of shape {tuple(param.shape)}: build the embedding with sparse=False"
                    )

    def _tensors_of(self, group: dict[str, Any]) -> kernels.Tensors:
        """Parameters with a gradient, gradients and both buffers; creates the missing buffers."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        momentum_buffers: list[Tensor] = []
        square_avgs: list[Tensor] = []
        for param in group["params"]:
            if not param.requires_grad:
                continue
            state = self.state[param]
            if not state:  # also without a gradient, so that every rank has the same keys
                state["momentum_buffer"] = torch.zeros_like(param)
                state["square_avg"] = torch.zeros_like(param)
            if param.grad is not None and param.numel() > 0:
                params.append(param)
                grads.append(param.grad)
                momentum_buffers.append(state["momentum_buffer"])
                square_avgs.append(state["square_avg"])
        return params, grads, momentum_buffers, square_avgs

    # ---- groups and checkpoints ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group added later joins at the present window.

        Raises:
            TypeError: for complex parameters.
            ValueError: for a window argument that differs from the optimizer's.
        """
        # not the defaults alone: a loaded state dict may have brought another window
        common = self.param_groups[0] if self.param_groups else self.defaults
        for name in checkpoint.COMMON:
            if param_group.get(name, common[name]) != common[name]:
                raise ValueError(
                    f"{name} is one for the whole optimizer: it is {common[name]!r} and a group "
                    f"asks for {param_group[name]!r}"
                )
        added = {**param_group, **{name: common[name] for name in checkpoint.COMMON}}
        arguments.check({**self.defaults, **added})
        super().add_param_group(arguments.plain(added))
        for param in self.param_groups[-1]["params"]:
            if param.is_complex():
                self.param_groups.pop()
                raise TypeError(
                    f"DWMGrad takes real parameters, got {param.dtype} of shape "
                    f"{tuple(param.shape)}: optimize torch.view_as_real(parameter)"
                )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch. A loss that Accelerate brought with these gradients goes with them."""
        observation = self._observation
        if observation is not None and observation.route == BACKWARD:
            self.discard_loss()
        super().zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but checked as a whole first: a refused state dict changes nothing.

        Raises:
            TypeError, ValueError: if it is not one of DWMGrad with these parameters; the message
                names the key.
        """
        checkpoint.check(state_dict, self)
        super().load_state_dict(state_dict)
        self._forget_losses()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_losses()


def _window_of(group: dict[str, Any]) -> Window:
    return Window(
        size=group["window"],
        max_size=group["max_window"],
        signal=group["window_signal"],
        last_loss=group["last_loss"],
        observations=group["observations"],
        increases=group["increases"],
    )


def _coefficients(group: dict[str, Any], window: Window) -> kernels.Coefficients:
    lr = float(group["lr"])
    return kernels.Coefficients(
        step_size=-lr if group["maximize"] else lr,
        decay=window.decay,
        momentum=window.momentum(group["momentum"]),
        eps=group["eps"],
        shrink=lr * group["weight_decay"],
    )
