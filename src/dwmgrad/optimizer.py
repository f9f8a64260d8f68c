"""The optimizer: its arguments, the routes of the loss, the step, and checkpoints."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from numbers import Number
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import arguments, capturable, checkpoint, presets, progress, ranks, state
from .limit import share_kept
from .losses import OBSERVE, WITH_GRADIENTS, copied
from .stepping import ELEMENTS_SKIPPED, STANDS_OUT, STEP_SKIPPED, Stepping
from .wrappers import wrapped

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


_SHARED = itemgetter(*arguments.SHARED)
_NO_SCHEDULE = (
    "lr is 0, and auto_lr (of the preset auto) takes the shape of its schedule from lr: no step "
    "moves anything until lr is raised, and then the shape is lost. Leave lr out"
)


class DWMGrad(Stepping):
    """RMSprop with momentum, and a memory ω that follows the training loss.

    With the gradient g, one step is

        ω ← min(ω + 1, δ) if the loss fell (the signal is positive), else max(ω − 1, 1)
        s ← s (ω − 1)/ω + g²/ω
        v ← (γ ω/δ) v + α g/(√s + ε)
        θ ← (1 − α λ) θ − v

    Source: Wang, Li, Zeng, "Dynamically Weighted Momentum with Adaptive Step Sizes for Efficient
    Deep Network Training", arXiv 2510.25042, Algorithm 1; decoupled weight decay as in AdamW.

    The loss reaches the optimizer on one of these routes, the same one throughout a step:
    `accelerator.backward(loss)` and the Hugging Face Trainer bring it by themselves;
    `observe_loss(loss)` before `step()`; `step(closure)`; `step(loss=loss)`. A loss that is not
    finite, on any rank, skips the whole step: parameters, state and window stay as they are. If a
    gradient's element is not finite, or its square is not, that element of the parameter and of its
    state stays as it is.

    Args:
        params: parameters, or dicts of parameter groups. A group may have its own lr,
            weight_decay, momentum, eps, maximize and state_dtype; the window is one for the whole
            optimizer.
        lr: learning rate α, a float or a 0-dim tensor (read by the host at every step). A
            gradient's total effect is α/(1 - momentum·window/max_window): up to 10 α.
        momentum: base momentum γ, in [0, 1). 0.9 by default, or what the preset says.
        eps: ε, added to the root of the mean square, outside of it.
        weight_decay: decoupled weight decay λ.
        preset: None: the paper's rule. `"finetune"`, `"capped"` or `"auto"`: sets the arguments
            that are not given, see `presets.PRESETS`. AdamW's learning rates suit `finetune`.
            With `capped` they are a ceiling: it takes shorter steps where the loss asks for them.
            `auto` needs none, and takes from lr only its schedule.
        initial_window: the window ω before the first step, in steps; by default 5, or
            `max_window` if that is less.
        max_window: the window's upper bound δ, in steps; 10 by default.
        window_signal: `"decrease"`, the default, `"increase"` or `"loss"`; see
            `dwmgrad.rule.Window`.
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
        auto_lr: take from lr only how it changes: α is 0.03 · lr / its peak, and `loss_limit`
            makes it as small as it has to be. The peak is the `max_lr` or `initial_lr` that a
            scheduler leaves in the groups, else the lr given here; the highest of all groups.
            False by default; the preset auto sets it.
        loss_limit: the most that a step may be predicted to take off the loss, as a share of it, at
            the full window; at a shorter one as much less. Where more is predicted, the step is
            scaled down, so that a learning rate that is too high does little harm. None, the
            default: no limit. The presets capped and auto set it. See `limit.step_limit`.
        limit_growth: what is added to `loss_limit`, times how far the mean loss has fallen from its
            highest to `loss_floor`: 0 at the beginning, 1 there. The mean is that of
            `loss_smoothing`. 0 by default.
        limit_slope: what is added to `loss_limit`, times `rule.Window.falling`: how fast the loss
            falls still, once the window is full. 0 by default.
        loss_floor: a lower bound of the loss, for `loss_limit`; 0 by default. Where the loss is at
            or below it, the last scale holds, and a warning says so once.
        loss_guard: a step whose loss is more than so many deviations above the mean of the recent
            ones is skipped, as its batch is probably broken: at most three in a row, and none of
            the first 15. They are counted in `guarded_steps`. None, the default: no guard. See
            `guard.Guard`.
        maximize: ascend the gradient. The window still reads the loss as it is given.
        foreach: True prefers the multi-tensor kernel, False excludes it.
        fused: True prefers the fused kernel, False excludes it. None, for both: the fastest that
            is right for each tensor.
        missing_loss: what a step without a loss does. `"warn"`: holds the window and says so once.
            `"hold"`: holds it in silence. `"error"`: raises, before anything has changed. The
            step by which `torch.distributed.checkpoint` creates the state is none; so is, on one
            rank, any first step without a loss where every lr and every gradient is 0.
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

    _follows_length: bool  # whether `expect_steps` may set the window's bound
    _begins_given: bool  # whether it is to leave the window before the first step
    _preset: str | None  # what the groups of the constructor may name, too

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]],
        lr: float | Tensor = 1e-3,
        momentum: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        preset: str | None = None,
        initial_window: int | None = None,
        max_window: int | None = None,
        window_signal: str | None = None,
        loss_smoothing: float | None = None,
        bias_correction: bool | None = None,
        normalize_momentum: bool | None = None,
        second_moment_window: int | None = None,
        auto_lr: bool | None = None,
        loss_limit: float | None = None,
        limit_growth: float | None = None,
        limit_slope: float | None = None,
        loss_floor: float | None = None,
        loss_guard: float | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        missing_loss: str = "warn",
        state_dtype: torch.dtype | str | None = None,
        stochastic_rounding: bool = False,
        loss_group: ProcessGroup | DeviceMesh | None = None,
        capturable: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in arguments.ARGUMENTS}
        defaults = presets.resolve(given)
        del defaults["loss_group"]
        arguments.check_new(defaults)
        defaults = arguments.plain(defaults)
        defaults |= progress.initial_progress(defaults["initial_window"])
        defaults |= {"peak_lr": None, "clipped_to": 1.0}  # each group has its own peak
        if defaults["auto_lr"]:
            defaults["step_limit"] = 0.0  # until a loss says how far a step may go
        grows = preset is not None and presets.PRESETS[preset].get("window_signal") == "loss"
        self._follows_length = grows and max_window is None
        self._begins_given = initial_window is not None
        self._preset = preset
        group = ranks.group_of(loss_group)
        self._begin_anew()
        super().__init__(params, defaults)
        self._begin_alone(group)
        if defaults["auto_lr"] and not any(float(group["lr"]) for group in self.param_groups):
            warnings.warn(_NO_SCHEDULE, stacklevel=2)

    def expect_steps(self, steps: int) -> None:
        """Lets the window of `auto` or `capped` grow over a fifth of a run, not over 95 steps.

        The Trainer's integration calls it. It does nothing with another preset, with a `max_window`
        that was given, and after the first step. The window begins at 5 % of its bound, or at the
        `initial_window` that was given, cut to that bound.

        Args:
            steps: how many the run will make.

        Raises:
            TypeError, ValueError: if that is no whole number of steps.
        """
        arguments.check_steps("steps", steps)
        if (inner := self._inner()) is not None:
            return inner.expect_steps(steps)
        group = self._read_device()[0]
        grows = self._follows_length and group["window_signal"] == "loss"  # a loaded one may not
        if grows and not group["steps"]:
            most = max(1, round(presets.AUTO_SHARE * steps))
            first = self.defaults["initial_window"]
            if not self._begins_given:
                first = max(1, round(first / self.defaults["max_window"] * most))
            first = min(first, most)
            for group in self.param_groups:
                group |= {"max_window": most, "initial_window": first, "window": first}
            self._device_window = None  # it has the numbers of before

    def _inner(self) -> DWMGrad | None:
        """What Lightning's or Fabric's wrapper holds, whose class is made of this one; else None.

        What is written on the wrapper would stay there.
        """
        inner = wrapped(self)
        return inner if isinstance(inner, DWMGrad) else None

    # ---- what to look at ----

    @property
    def window(self) -> int:
        """The present window ω, in steps."""
        return self._read_device()[0]["window"]

    @property
    def effective_momentum(self) -> float:
        """γω/δ of the first parameter group."""
        group = self._read_device()[0]
        return progress.window_of(group).momentum(group["momentum"])

    @property
    def effective_lr(self) -> float:
        """What AdamW's learning rate would be, of the groups the largest; see `limit.effective_lr`.

        0 without `loss_limit`.
        """
        return self._read_device()[0]["effective_lr"]

    @property
    def last_loss(self) -> float | None:
        """The loss that moved the window last, the mean over ranks; None before the first."""
        return self._read_device()[0]["last_loss"]

    def _read_device(self) -> list[dict[str, Any]]:
        """The parameter groups; with `capturable`, brings their numbers up to date first."""
        if self._device_window is not None:
            guarded = self.param_groups[0]["guarded_steps"]
            elements, steps, at_floor = self._device_window.write(self.param_groups)
            self._say_once(STANDS_OUT, self.param_groups[0]["guarded_steps"] > guarded)
            self._say_once(ELEMENTS_SKIPPED, elements)
            self._say_once(STEP_SKIPPED, steps)
            if at_floor:
                self._say_at_floor()
        return self.param_groups

    # ---- the loss ----

    def observe_loss(self, loss: Tensor | float) -> None:
        """Brings one micro-batch's loss, before `step()`.

        Call it once per micro-batch, with the loss divided as its gradients are, so that the
        losses of a step add up to that of its effective batch. The loss is unscaled (a gradient
        scaler's factor is not in it), of this rank alone, and may be attached to a graph. It is
        copied. Where a batch is given up, `discard_loss()` drops it: `zero_grad()` does not, as it
        may come between this call and the backward pass.

        Args:
            loss: a tensor with one element, or a number.

        Raises:
            TypeError, ValueError: if it is not one real number.
            RuntimeError: if this step's loss comes on another route already.
        """
        self._feed.discard_dropped(self.param_groups)
        self._feed.expect(OBSERVE)
        self._feed.add(self._feed.checked(loss), OBSERVE)

    def observe_clipping(self, total_norm: Tensor | float, max_norm: float) -> None:
        """Tells `loss_limit` that the gradients of the step to come were clipped to a norm.

        What a step takes off the loss is predicted from the gradients as they were before.
        `accelerator.clip_grad_norm_`, which the Trainer calls, tells it by itself; with
        `torch.nn.utils.clip_grad_norm_` call this before `step()`. It holds for one step. Where
        parts of a model are clipped one by one, what shrank most counts for all.

        Args:
            total_norm: of all gradients before, as `clip_grad_norm_` returns it.
            max_norm: what they were clipped to; infinity where they were only measured.

        Raises:
            TypeError, ValueError: if they are no real numbers, or `max_norm` is below 0 or NaN.
        """
        for name, value in (("total_norm", total_norm), ("max_norm", max_norm)):
            if not isinstance(value, Tensor):
                arguments.check_real(name, value)
            elif value.numel() != 1:
                raise ValueError(f"{name} must be one number, got shape {tuple(value.shape)}")
        if not max_norm >= 0:
            raise ValueError(f"max_norm must be at least 0, got {max_norm!r}")
        if (inner := self._inner()) is not None:
            return inner.observe_clipping(total_norm, max_norm)
        share: Tensor | float = 1.0
        if self.param_groups[0]["loss_limit"] is not None:
            norm = copied(total_norm) if isinstance(total_norm, Tensor) else total_norm
            share = share_kept(norm, max_norm)
        self._feed.clip(share)

    def discard_loss(self) -> None:
        """Drops the losses observed since the last step, for a step that is given up.

        Not needed where a gradient scaler skips the step: the optimizer notices that by itself.
        """
        self._feed.discard()
        self._feed.drop_clipping()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler.step() reads this name just before it either calls step() or skips it, which
        # is the only trace that a skipped step leaves here.
        scaler = sys._getframe(1).f_locals.get("self")
        if not isinstance(scaler, torch.amp.GradScaler):
            return False
        self._feed.scaler_asks()
        if self.param_groups[0]["capturable"] and capturable.takes_scale(self, scaler):
            self._scaler = scaler
            return True
        if not self._steps_alone():
            self._agree_to_skip(scaler)
        return False

    # ---- the step ----

    @torch._disable_dynamo  # a compiled train step calls this one as it is
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Tensor | float | None] | None = None,
        *,
        loss: Tensor | float | None = None,
    ) -> Any:
        """One step of the rule.

        Where there is neither a gradient nor a loss it does nothing, as torch's optimizers do.

        Args:
            closure: computes the loss, with or without its backward pass, and returns it; or
                returns None. Where Accelerate or Lightning bring the loss of this step, what it
                returns is for the caller alone.
            loss: the loss of the step's effective batch.

        Returns:
            What the closure returned, or `loss`.

        Raises:
            RuntimeError: if the step's loss comes on two routes, if there is none and
                `missing_loss="error"`, if a gradient is sparse, or if ranks are not set up alike.
            TypeError, ValueError: if the loss is not one real number, or a lr is not finite.

        Whatever of these it raises, parameters, state and window are as before.
        """
        feed, groups = self._feed, self.param_groups
        with self._undone_if_it_raises(
            brings_loss=closure is not None or loss is not None
        ) as scaled:
            loss = feed.take(closure, loss, scaled, groups)
            self._check_groups()
            if self._device_window is not None and not groups[0]["capturable"]:
                self._read_device()  # it was switched off: the host goes on from there
                self._device_window = self._plan = None
            observation = feed.observation
            if observation is not None and (self._makes_state or observation.repeats(groups)):
                observation = None  # it is of the step to come, or of the one before
            agreed = self._agreed_on(observation)
            make_step = self._prepared(observation, agreed)  # whatever can fail comes before it
            if observation is not None:
                observation.use(groups)
                feed.trace = None  # weak references keep `model.to()` from swapping tensors
        try:
            if make_step is not None:
                make_step()
        finally:  # it may warn, and warnings may be errors
            feed.drop_clipping()
        # said last: where warnings are errors, this step is still whole
        self._say_once(STEP_SKIPPED, agreed.is_refused)
        self._say_once(STANDS_OUT, observation is not None and observation.stands_out)
        return loss

    @contextlib.contextmanager
    def _undone_if_it_raises(self, brings_loss: bool) -> Iterator[bool]:
        """Around all before the first change; gives whether a gradient scaler makes the step."""
        feed = self._feed
        pending, scaled = feed.observation, feed.begin_step()
        try:
            yield scaled
        except BaseException:
            feed.undo(pending)
            feed.put_clipping_aside()
            feed.refused = not brings_loss  # the next loss belongs to another step
            if self._scaler is not None:  # which forgets them after a step that returns
                for name in ("grad_scale", "found_inf"):
                    vars(self).pop(name, None)
            raise
        finally:
            feed.ahead = self._scaler = None

    def _check_groups(self) -> None:
        groups = self._all_groups()
        shared = _SHARED(groups[0])
        for index, group in enumerate(groups):
            if _SHARED(group) != shared:
                names = zip(arguments.SHARED, _SHARED(group), shared, strict=True)
                name, own, first = next(each for each in names if each[1] != each[2])
                raise ValueError(
                    f"{name} is one for the whole optimizer: it is {first!r} in parameter group 0 "
                    f"and {own!r} in group {index}: write it into every group"
                )
            if capturable.reads_lr(group):
                arguments.check_lr(f"lr of parameter group {index}", float(group["lr"]))

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
        if "preset" in param_group:  # where wrappers put all that the constructor takes
            param_group = dict(param_group)
            asked, own = param_group.pop("preset"), vars(self).get("_preset")
            if asked != own:
                raise ValueError(
                    f"preset is one for the whole optimizer: it is {own!r} and a group asks for "
                    f"{asked!r}"
                )
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
        added["peak_lr"] = float(added.get("lr", self.defaults["lr"]))
        super().add_param_group(arguments.plain(added))
        for param in self.param_groups[-1]["params"]:
            if param.is_complex():
                self.param_groups.pop()
                raise TypeError(
                    f"DWMGrad takes real parameters, got {param.dtype} of shape "
                    f"{tuple(param.shape)}: optimize torch.view_as_real(parameter)"
                )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch. A loss that a backward pass brought with these gradients goes with them."""
        self._feed.discard(WITH_GRADIENTS)
        self._feed.drop_clipping()
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As in torch."""
        self._read_device()
        self._plan = None
        for group in self.param_groups:  # as others left it: a scheduler NumPy's numbers, a user
            group.update(arguments.plain(group))  # a bound that the next step brings the window to
            group["window"] = min(group["window"], group["max_window"])
        for own in self._states():  # torch.distributed.checkpoint may load into what it gets
            if state.ZERO_SHARE in own:
                own[state.ZERO_SHARE] = own[state.ZERO_SHARE].clone()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but checked as a whole first: a refused state dict changes nothing.

        Where this optimizer has a `state_dtype` of its own, the loaded state is converted to it;
        else it stays in the precision in which it was saved. Gradients stay, and with them the
        losses that their backward pass brought; what `observe_loss` brought is dropped.

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

    def __getstate__(self) -> dict[str, Any]:
        if self.loss_group is not None:
            raise TypeError("a DWMGrad with loss_group= cannot be copied: copy its state_dict()")
        self._read_device()
        kept = super().__getstate__()  # type: ignore[misc]
        names = ("_follows_length", "_begins_given")
        return kept | {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "loss_group" not in self.__dict__:  # load_state_dict() comes by here, too
            self._begin_alone(None)
        for name in ("_follows_length", "_begins_given"):
            self.__dict__.setdefault(name, False)
        for group in self.param_groups:  # of a pickle that an earlier version made
            checkpoint.bring_up(group, self.state)
        self._begin_anew()
