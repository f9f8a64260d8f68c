"""The optimizer: its arguments, its state, and the step."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import starmap
from numbers import Number
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import arguments, capturable, checkpoint, kernels, presets, progress, state
from .cohorts import NewState, share_reader
from .distributed import group_of, mean_on_device, mean_over_ranks
from .loss_feed import BACKWARD, OBSERVE, LossFeed
from .observation import Observation
from .plan import Age, Plan, moves_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


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
    finite, on any rank, skips the whole step: parameters, state and window stay as they are. An
    element of a gradient that is not finite, or whose square is not, leaves that element of the
    parameter and its state as they are.

    Args:
        params: parameters, or dicts of parameter groups. A group may have its own lr,
            weight_decay, momentum, eps and maximize; the window is one for the whole optimizer.
        lr: learning rate α, a float or a 0-dim tensor (read by the host at every step). A
            gradient's total effect is α/(1 - momentum·window/max_window): up to 10 α.
        momentum: base momentum γ, in [0, 1).
        eps: ε, added to the root of the mean square, outside of it.
        weight_decay: decoupled weight decay λ.
        preset: None: the paper's rule. `"finetune"`: what `presets.PRESETS` has under this name
            for each of the arguments below that is not given; AdamW's learning rates suit it.
        initial_window: the window ω before the first step, in steps; by default 5, or
            `max_window` if that is less.
        max_window: the window's upper bound δ, in steps; 10 by default.
        window_signal: `"decrease"`, `"increase"` or `"loss"`; see `dwmgrad.window.Window`.
        loss_smoothing: the share of the past in the exponential mean of the losses that the signal
            reads, in [0, 1). 0, the default: it reads each loss as it is.
        bias_correction: divide s by the sum of its weights, each parameter's by its own steps, as
            Adam does. False by default: s begins near 0, and the first step is larger than lr. A
            parameter that begins later than the optimizer (unfrozen, added, its state cleared) is
            corrected in any case, as the window may be long by then: its first steps are about lr.
            DeepSpeed's ZeRO joins a group's parameters into one, which has one age.
        normalize_momentum: multiply α in v by (1 - m)√((1 - μ²)/(1 - m²)), with the effective
            momentum μ = γω/δ and m = γ/2. At half the full window a gradient's total effect is
            then α, as it is in AdamW; at a shorter one it is less, at a longer one more, so that
            noise in the gradients moves the parameters as far at any window. False by default.
        second_moment_window: the window of s, in steps, where it is not ω: 500 is what Adam has as
            β₂ = 0.998. None, the default: ω, or what the preset says.
        maximize: ascend the gradient. The window still reads the loss as it is given.
        foreach: True prefers the multi-tensor kernel, False excludes it.
        fused: True prefers the fused kernel, False excludes it. None, for both: the fastest that
            is right for each tensor.
        missing_loss: what a step without a loss does. `"warn"`: holds the window and says so once.
            `"hold"`: holds it in silence. `"error"`: raises, before anything has changed. Where
            every lr and every gradient is 0, a step without a loss holds the window in silence:
            that is how `torch.distributed.checkpoint` creates the state.
        state_dtype: the precision of the state. None: the parameters' own (8 bytes a parameter in
            float32), and float32 for float16 parameters. `torch.bfloat16`: 4 bytes. `"int8"`: about
            2, in blocks of 256; tensors of fewer than 4,096 elements, and embeddings marked by
            `state.keep_in_float32`, stay in float32. The last two round stochastically, with the
            same noise in every run.
        stochastic_rounding: round bfloat16 parameters, and their state, stochastically, so that
            updates below half a unit of the last place are not lost.
        loss_group: the process group, or the one-dimensional device mesh, over whose ranks the
            loss is averaged. None: the default group, which is right for data, tensor and context
            parallelism alike; a group of its own is for ranks that do not all have a loss
            (pipelines) or that train different models. Not part of the state dict.
        capturable: keep the loss, the window and all that follows on the device of the parameters,
            which must be one device. No step waits for it then, and a CUDA graph can contain the
            step, if a few steps were taken before; `load_state_dict()` asks for a new capture. In a
            graph, a lr that changes is a tensor on the device. `window`, `last_loss`,
            `effective_momentum` and `state_dict()` wait for the device and tell what was skipped or
            held; in between, `param_groups` has the window's numbers as these read them last.

    Raises:
        TypeError, ValueError: for an argument out of range; the message names it and its value.
    """

    loss_group: Any
    _device_window: capturable.DeviceWindow | None
    _feed: LossFeed
    _held: list[bool | Tensor]
    _overlaps: kernels.Overlaps
    _plan: Plan | None
    _said: set[str]

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        preset: str | None = None,
        initial_window: int | None = None,
        max_window: int | None = None,
        window_signal: str = "decrease",
        loss_smoothing: float | None = None,
        bias_correction: bool | None = None,
        normalize_momentum: bool | None = None,
        second_moment_window: int | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        missing_loss: str = "warn",
        state_dtype: torch.dtype | str | None = None,
        stochastic_rounding: bool = False,
        loss_group: ProcessGroup | DeviceMesh | None = None,
        capturable: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
            "window_signal": window_signal,
            **presets.resolve(
                preset,
                {
                    "initial_window": initial_window,
                    "max_window": max_window,
                    "loss_smoothing": loss_smoothing,
                    "bias_correction": bias_correction,
                    "normalize_momentum": normalize_momentum,
                    "second_moment_window": second_moment_window,
                },
            ),
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "missing_loss": missing_loss,
            "state_dtype": state_dtype,
            "stochastic_rounding": stochastic_rounding,
            "capturable": capturable,
        }
        arguments.check(defaults)
        defaults = arguments.plain(defaults)
        defaults |= progress.initial_progress(defaults["initial_window"])
        self.loss_group = group_of(loss_group)
        self._forget_losses()
        super().__init__(params, defaults)

    # ---- what to look at ----

    @property
    def window(self) -> int:
        """The present window ω, in steps."""
        self._read_device()
        return self.param_groups[0]["window"]

    @property
    def effective_momentum(self) -> float:
        """γω/δ of the first parameter group."""
        self._read_device()
        group = self.param_groups[0]
        return progress.window_of(group).momentum(group["momentum"])

    @property
    def last_loss(self) -> float | None:
        """The loss that moved the window last, the mean over ranks; None before the first."""
        self._read_device()
        return self.param_groups[0]["last_loss"]

    def _read_device(self) -> None:
        """With `capturable`, brings the numbers of the parameter groups up to date."""
        if self._device_window is not None:
            held, skipped = self._device_window.write(self.param_groups)
            if held:
                self._say_once(_HELD)
            if skipped:
                self._say_once(_SKIPPED)

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
        self._feed.observe(loss, route=OBSERVE)

    def discard_loss(self) -> None:
        """Drops the losses observed since the last step, for a step that is given up.

        Not needed where a gradient scaler skips the step: the optimizer notices that by itself.
        """
        self._feed.discard()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler.step() reads this name just before it either calls step() or skips it, which
        # is the only trace that a skipped step leaves here.
        caller = sys._getframe(1).f_locals.get("self")
        if not isinstance(caller, torch.amp.GradScaler):
            return False
        self._feed.scaler_asks()
        return self.param_groups[0]["capturable"] and capturable.takes_scale(self, caller)

    # ---- the step ----

    @torch._disable_dynamo  # a compiled train step calls this one as it is
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

        Whatever of these it raises, parameters, state and window are as before.
        """
        feed = self._feed
        scaled, feed.step_tried, feed.refused = feed.step_tried, False, False
        brings_loss = closure is not None or loss is not None
        pending = feed.observation
        try:
            if brings_loss:
                loss = feed.take(closure, loss, scaled, self._params())
            self._check_before_change()
            observation = feed.observation
            if observation is not None and observation.repeats(self.param_groups):
                observation = None  # it belonged to the step before
            only_makes_state = observation is None and self._creates_state()
            # a rank may make state alone, so no all-reduce then
            value = None if only_makes_state else self._settle(observation)
            skips = isinstance(value, float) and math.isnan(value)
            # whatever can fail comes first: a step that raises has moved nothing
            makes_step = None if skips else self._prepared(observation, value)
        except BaseException:
            feed.observation = pending
            feed.refused = not brings_loss  # the next loss belongs to another step
            raise
        if skips:
            self._say_once(_SKIPPED)
        if makes_step is not None and not only_makes_state:
            makes_step()
        return loss

    def _prepared(
        self, observation: Observation | None, value: float | Tensor | None
    ) -> Callable[[], None]:
        """Checks and readies all that a step needs; what it returns makes the step."""
        groups = self.param_groups
        moving = [g for g in groups if observation is None or not observation.has_moved(g)]
        window = self._device_window if isinstance(value, Tensor) else None
        begins = window.begins if window else groups[0]["steps"] == (0 if moving else 1)
        states = NewState(self.state, corrected=groups[0]["bias_correction"] or not begins)
        age: Age = share_reader() if window is None else window.age
        moves = self._plan.renew(groups, self.state, age) if self._plan else None
        if moves is None:
            self._plan = None
            moves = moves_of(groups, states, age, self._overlaps)
            self._plan = Plan(groups, self.state, moves, self._overlaps)
        if window is not None:
            assert isinstance(value, Tensor)
            of_scaler = [self._of_scaler(name) for name in ("grad_scale", "found_inf")]
            return lambda: window.step(groups, moves, value, *of_scaler)
        assert not isinstance(value, Tensor)
        numbers = progress.advanced(moving[0], value) if moving else {}
        changes = [(group, numbers) for group in moving]
        calls = []
        for group, own in zip(groups, moves, strict=True):
            after = {**group, **numbers}
            for zero_share, states_of, buckets in own:
                share = progress.share_after(zero_share, after)
                if zero_share:
                    new = {state.ZERO_SHARE: state.share_of(share)}
                    changes += [(kept, new) for kept in states_of]
                calls.append((buckets, progress.coefficients(after, share), group))
        return lambda: self._make_step(observation, moving, changes, calls)

    def _make_step(
        self,
        observation: Observation | None,
        moving: list[dict[str, Any]],
        changes: list[tuple[dict[str, Any], dict[str, Any]]],
        calls: list[tuple[list[kernels.Bucket], kernels.Coefficients, dict[str, Any]]],
    ) -> None:
        if observation is not None:
            observation.mark_moved(moving)
        # One call of C, in which no signal's handler runs: Ctrl-C finds all numbers before the step
        # or all after it.
        deque(starmap(dict.update, changes), maxlen=0)
        for buckets, coefficients, group in calls:
            self._held += kernels.run(
                buckets, coefficients, use_foreach=group["foreach"], use_fused=group["fused"]
            )
        if self._held and all(isinstance(held, bool) for held in self._held):
            self._tell_of_held()

    def _settle(self, observation: Observation | None) -> float | Tensor | None:
        """The step's loss, the same on every rank.

        None without one, and NaN if it is not finite on any rank. With `capturable` it is a tensor;
        see `mean_on_device`.
        """
        device = next((p.device for p in self._params()), torch.device("cpu"))
        mean: Callable[..., Any] = mean_over_ranks
        stays = self.param_groups[0]["capturable"]
        if stays:
            if observation is not None and observation.settled:
                raise RuntimeError("capturable=True takes one step() a loss, for all parameters")
            if self._device_window is None:
                self._device_window = capturable.DeviceWindow(self.param_groups, device)
            self._device_window.check(self._params())
            mean = functools.partial(mean_on_device, found_inf=self._of_scaler("found_inf"))
        if observation is None:
            value = mean(None, device, self.loss_group)
        else:
            value = observation.settle(device, self.loss_group, mean)
            observation.mark_stepped(self.param_groups)
        if (observation if stays else value) is None:
            self._go_without_loss()
        self._tell_of_held()
        return value

    def _tell_of_held(self) -> None:
        """Warns once if elements were held; what an accelerator says is read with the next loss."""
        if self._held and _HELD not in self._said and bool(sum(self._held)):  # one host sync
            self._say_once(_HELD)
        self._held.clear()

    def _of_scaler(self, name: str) -> Tensor | None:
        found = getattr(self, name, None)  # there while a gradient scaler leaves its work to step()
        return found if isinstance(found, Tensor) else None

    def _params(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _grads(self) -> Iterator[Tensor]:
        return (p.grad for p in self._params() if p.requires_grad and p.grad is not None)

    def _creates_state(self) -> bool:
        """Whether this is how torch.distributed.checkpoint makes state: no loss, lr and grads 0."""
        if any(state.BUFFERS[0] in own for own in self.state.values()):
            return False
        if any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        return not any(state.local_part(grad).any() for grad in self._grads())

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
            if capturable.reads_lr(group) and not 0 <= float(group["lr"]) < math.inf:
                raise ValueError(
                    f"lr of parameter group {index} must be in [0, inf), got {group['lr']}"
                )

    # ---- groups and checkpoints ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch; a group added later joins at the present window.

        Raises:
            TypeError: for complex parameters.
            ValueError: for a window argument that differs from the optimizer's.
        """
        self._read_device()
        # not the defaults alone: a loaded state dict may have brought another window
        common = self.param_groups[0] if self.param_groups else self.defaults
        if "preset" in param_group:
            raise ValueError("preset is one for the whole optimizer: DWMGrad(params, preset=...)")
        for name in checkpoint.COMMON:
            asked = param_group.get(name, common[name])
            if not isinstance(asked, (Number, str, type(None))) or asked != common[name]:
                raise ValueError(
                    f"{name} is one for the whole optimizer: it is {common[name]!r} and a group "
                    f"asks for {asked!r}"
                )
        params = param_group.get("params")
        if not isinstance(params, Iterable):
            raise TypeError(f"params must be tensors or (name, tensor) pairs, got {params!r}")
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
        self._feed.discard(BACKWARD)
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As in torch."""
        self._read_device()
        self._plan = None
        for own in self.state.values():  # torch.distributed.checkpoint may load into what it gets
            if state.ZERO_SHARE in own:
                own[state.ZERO_SHARE] = own[state.ZERO_SHARE].clone()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but checked as a whole first: a refused state dict changes nothing.

        Where this optimizer has a `state_dtype` of its own, the loaded state is converted to it;
        else it stays in the precision in which it was saved.

        Raises:
            TypeError, ValueError: if it is not one of DWMGrad with these parameters; the message
                names the key.
        """
        checkpoint.check_form(state_dict)

        def check(_: Optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
            nonlocal state_dict
            state_dict = checkpoint.checked(adapted, self)
            return state_dict

        # As the last pre-hook: the others are there to make a state dict fit that does not.
        handle = self.register_load_state_dict_pre_hook(check)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        checkpoint.restore_precision(state_dict, self)
        self._forget_losses()

    def __getstate__(self) -> dict[str, Any]:
        if self.loss_group is not None:
            raise TypeError("a DWMGrad with loss_group= cannot be copied: copy its state_dict()")
        self._read_device()
        return super().__getstate__()  # type: ignore[misc]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("loss_group", None)  # load_state_dict() comes by here, too
        for group in self.param_groups:  # of a pickle that an earlier version made
            checkpoint.bring_up(group, self.state)
        self._forget_losses()

    def _forget_losses(self) -> None:
        self._device_window = None
        self._feed = LossFeed()
        self._held = []
        self._overlaps = kernels.Overlaps()
        self._plan = None
        self._said = set()


_SKIPPED = "the loss is not finite: this step is skipped, nothing has changed"
_HELD = (
    "a gradient has elements that are not finite, or whose square is not: those elements of the "
    "parameters and of the state stay as they were, the others have moved"
)
