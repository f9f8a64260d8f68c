"""The optimizer: its arguments, its state, and the step."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, starmap
from numbers import Number
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.distributed.algorithms.join import Join, Joinable, JoinHook
from torch.optim import Optimizer

from . import arguments, capturable, checkpoint, kernels, progress, ranks, rule, state
from .cohorts import NewState, share_reader
from .losses import OBSERVE, WITH_GRADIENTS, LossFeed, Observation, copied
from .plan import Age, Moves, Plan, moves_of
from .ranks import Agreed, AgreedOnDevice, Share
from .zero import Pieces

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class DWMGrad(Optimizer, Joinable):
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
        preset: None: the paper's rule. `"finetune"`, `"capped"` or `"auto"`: what `rule.PRESETS`
            has under this name for each of the arguments below that is not given. AdamW's learning
            rates suit `finetune` and `capped`, which takes shorter steps where the loss asks for
            them; `auto` needs none, and takes from lr only its schedule.
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
            default: no limit. The presets capped and auto set it. See `rule.step_limit`.
        loss_floor: a lower bound of the loss, for `loss_limit`; 0 by default. Where the loss is at
            or below it, the last scale holds, and a warning says so once.
        loss_guard: a step whose loss is more than so many deviations above the mean of the recent
            ones is skipped, as its batch is probably broken: at most three in a row, and none of
            the first 15. They are counted in `guarded_steps`. None, the default: no guard. See
            `rule.Guard`.
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

    live: ClassVar[weakref.WeakSet[DWMGrad]] = weakref.WeakSet()
    """All that there are, for hosts that do not tell whose backward pass they make."""
    loss_group: Any
    _device_window: capturable.DeviceWindow | None
    _feed: LossFeed
    _skipped: list[bool | Tensor]
    _overlaps: kernels.Overlaps
    _plan: Plan | None
    _said: set[str]
    _scaler: torch.amp.GradScaler | None
    _same_setup: bool
    _has_stepped_alone: bool
    _follows_length: bool
    _clipped_to: Tensor | float
    _pieces: Pieces | None

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
        window_signal: str | None = None,
        loss_smoothing: float | None = None,
        bias_correction: bool | None = None,
        normalize_momentum: bool | None = None,
        second_moment_window: int | None = None,
        auto_lr: bool | None = None,
        loss_limit: float | None = None,
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
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
            **rule.resolve(
                preset,
                {
                    "initial_window": initial_window,
                    "max_window": max_window,
                    "window_signal": window_signal,
                    "loss_smoothing": loss_smoothing,
                    "bias_correction": bias_correction,
                    "normalize_momentum": normalize_momentum,
                    "second_moment_window": second_moment_window,
                    "auto_lr": auto_lr,
                    "loss_limit": loss_limit,
                    "loss_floor": loss_floor,
                    "loss_guard": loss_guard,
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
        defaults |= {"peak_lr": None, "clipped_to": 1.0}  # each group has its own peak
        grows = preset is not None and rule.PRESETS[preset].get("window_signal") == "loss"
        self._follows_length = grows and max_window is None and initial_window is None
        self.loss_group = ranks.group_of(loss_group)
        self._same_setup = self._has_stepped_alone = False
        self._forget_losses()
        super().__init__(params, defaults)
        self._be_known()

    def expect_steps(self, steps: int) -> None:
        """Lets the window of `auto` or `capped` grow over a fifth of a run, not over 95 steps.

        The Trainer's integration calls it. It does nothing with another preset, with a window that
        was given, and after the first step.

        Args:
            steps: how many the run will make.

        Raises:
            TypeError, ValueError: if that is no whole number of steps.
        """
        arguments.check_steps("steps", steps)
        if self._follows_length and not self.param_groups[0]["steps"]:
            most = max(1, round(rule.AUTO_SHARE * steps))
            share = self.defaults["initial_window"] / self.defaults["max_window"]
            first = max(1, round(share * most))
            for group in self.param_groups:
                group |= {"max_window": most, "initial_window": first, "window": first}

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
    def effective_lr(self) -> float:
        """What AdamW's learning rate would be: see `rule.effective_lr`. 0 without `loss_limit`."""
        self._read_device()
        return self.param_groups[0]["effective_lr"]

    @property
    def last_loss(self) -> float | None:
        """The loss that moved the window last, the mean over ranks; None before the first."""
        self._read_device()
        return self.param_groups[0]["last_loss"]

    def _read_device(self) -> None:
        """With `capturable`, brings the numbers of the parameter groups up to date."""
        if self._device_window is not None:
            guarded = self.param_groups[0]["guarded_steps"]
            elements, steps, at_floor = self._device_window.write(self.param_groups)
            if self.param_groups[0]["guarded_steps"] > guarded:
                self._say_once(_STANDS_OUT)
            if elements:
                self._say_once(_ELEMENTS_SKIPPED)
            if steps:
                self._say_once(_STEP_SKIPPED)
            if at_floor:
                self._say_at_floor()

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
        self._feed.observe(loss, route=OBSERVE)

    def observe_clipping(self, total_norm: Tensor | float, max_norm: float) -> None:
        """Tells `loss_limit` that the gradients of the step to come were clipped to a norm.

        What a step takes off the loss is predicted from the gradients as they were before.
        `accelerator.clip_grad_norm_`, which the Trainer calls, tells it by itself; with
        `torch.nn.utils.clip_grad_norm_` call this before `step()`. It holds for one step.

        Args:
            total_norm: of all gradients before, as `clip_grad_norm_` returns it.
            max_norm: what they were clipped to; infinity where they were only measured.

        Raises:
            ValueError: if `max_norm` is below 0, or NaN.
        """
        if not max_norm >= 0:
            raise ValueError(f"max_norm must be at least 0, got {max_norm!r}")
        if self.param_groups[0]["loss_limit"] is not None:
            norm = copied(total_norm) if isinstance(total_norm, Tensor) else total_norm
            self._clipped_to = max_norm / (norm + 1e-6)  # torch's formula

    def discard_loss(self) -> None:
        """Drops the losses observed since the last step, for a step that is given up.

        Not needed where a gradient scaler skips the step: the optimizer notices that by itself.
        """
        self._feed.discard()

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

    @torch.no_grad()
    def _agree_to_skip(self, scaler: torch.amp.GradScaler) -> None:
        """Lets a gradient scaler skip on all ranks the step that it would skip on one.

        Raises:
            RuntimeError: on every rank, if one has no gradients, of which scalers make an error.
        """
        feed = self._feed
        if scaler._per_optimizer_states[id(self)]["stage"] is OptState.READY:
            scaler.unscale_(self)
        found = list(scaler._per_optimizer_states[id(self)]["found_inf_per_device"].values())
        feed.discard_dropped(self.param_groups)
        observation = feed.observation if feed.is_open else None
        agreed = self._agree(observation, sum(each.to(found[0].device) for each in found))
        if observation is None:
            feed.ahead = agreed
        else:
            observation.agreed = agreed
        if isinstance(agreed, Agreed) and agreed.lacks_gradient:
            raise RuntimeError(
                "a gradient scaler makes this step, and a rank has no gradient: every rank must "
                "have run backward() before scaler.step(optimizer)"
            )
        for each in found:
            each.fill_(agreed.overflow)

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
            self._check_learning_rates()
            observation = feed.of_this_step(groups)
            agreed = self._agreed_on(observation)
            make_step = self._prepared(observation, agreed)  # whatever can fail comes before it
            if observation is not None:
                observation.use(groups)
        if agreed.is_refused:
            self._say_once(_STEP_SKIPPED)
        if agreed.stands_out:
            self._say_once(_STANDS_OUT)
        if make_step is not None:
            make_step()
        self._clipped_to = 1.0
        return loss

    @contextlib.contextmanager
    def _undone_if_it_raises(self, brings_loss: bool) -> Iterator[bool]:
        """Around all before the first change; gives whether a gradient scaler makes the step."""
        feed = self._feed
        scaled, feed.step_tried, feed.refused = feed.step_tried, False, False
        pending = feed.observation
        try:
            yield scaled
        except BaseException:
            feed.undo(pending)
            feed.refused = not brings_loss  # the next loss belongs to another step
            if self._scaler is not None:  # which forgets them after a step that returns
                for name in ("grad_scale", "found_inf"):
                    vars(self).pop(name, None)
            raise
        finally:
            feed.ahead = self._scaler = None

    def _prepared(
        self, observation: Observation | None, agreed: Agreed | AgreedOnDevice
    ) -> Callable[[], None] | None:
        """Checks and readies all that a step needs; what it returns makes the step."""
        if agreed.is_known_idle or agreed.is_refused:
            return None
        groups = self.param_groups
        moving = [g for g in groups if observation is None or not observation.has_moved(g)]
        window = self._device_window if isinstance(agreed, AgreedOnDevice) else None
        moves = self._moves(window, begins=groups[0]["steps"] == (0 if moving else 1))
        if isinstance(agreed, AgreedOnDevice):
            assert window is not None
            scale = self._of_scaler("grad_scale")
            is_sum = groups[0]["loss_limit"] is not None and not self._steps_alone()
            among = self._among_ranks() if is_sum else ()
            clipped_to = self._clipped_to
            return lambda: window.step(groups, moves, agreed, scale, clipped_to, *among)
        if agreed.makes_state:
            return None
        numbers: dict[str, Any] = {}
        if moving:
            loss = agreed.loss, agreed.micro_batches, agreed.stands_out
            numbers = progress.advanced(moving[0], *loss)
        if agreed.stands_out:
            return lambda: self._make_step(observation, moving, [(g, numbers) for g in moving], [])
        changes, calls = self._on_host(moves, numbers, agreed.loss, observation)
        changes = [*((group, numbers) for group in moving), *changes]
        return lambda: self._make_step(observation, moving, changes, calls)

    def _moves(self, window: capturable.DeviceWindow | None, begins: bool) -> Moves:
        """What the step moves, by age; of what the step before moved only the news is checked."""
        groups = self.param_groups
        begins = begins if window is None else window.begins
        age: Age = share_reader() if window is None else window.age
        moves = self._plan.renew(groups, self.state, age) if self._plan else None
        if moves is None:
            self._plan = None
            if window is not None:
                window.keep_only(self.state.values())
            states = NewState(self.state, corrected=groups[0]["bias_correction"] or not begins)
            moves = moves_of(groups, states, age, self._overlaps)
            self._plan = Plan(groups, self.state, moves, self._overlaps)
        return moves

    def _on_host(
        self,
        moves: Moves,
        numbers: dict[str, Any],
        loss: float | None,
        observation: Observation | None,
    ) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], list[_Call]]:
        """What becomes of the parameters' ages, and the calls of the kernels.

        Args:
            moves: what is to move.
            numbers: the groups' after the step; gets those of `loss_limit` here.
            loss: of the step, the mean over the ranks.
            observation: which it comes from.
        """
        common = self.param_groups[0]
        window = progress.window_of({**common, **numbers})
        decay = window.decay(common["second_moment_window"])
        changes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        calls: list[_Call] = []
        rates = self._rates()
        for group, own in zip(self.param_groups, moves, strict=True):
            for zero_share, states_of, buckets in own:
                share = rule.share_after(zero_share, decay)
                if zero_share:
                    new = {state.ZERO_SHARE: state.share_of(share)}
                    changes += [(kept, new) for kept in states_of]
                five = rule.coefficients(group, window, rates[id(group)], share)
                noise = numbers.get("steps", group["steps"])
                calls.append((buckets, _coefficients(group, five, noise), group))
        if common["loss_limit"] is not None:
            limited = observation.limited if observation is not None else None
            limited = limited or self._limits(calls, window, loss)
            if observation is not None:
                observation.limited = limited
            numbers |= limited
            limit = limited["step_limit"]
            calls = [(buckets, _scaled(c, limit), group) for buckets, c, group in calls]
        return changes, calls

    def _all_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, of which DeepSpeed may show but one at a time."""
        return self._pieces.groups if self._pieces else self.param_groups

    def _rates(self) -> dict[int, float]:
        """Each group's learning rate, by the group's id."""
        groups = self._all_groups()
        rates = map(float, rule.learning_rates(groups))
        return dict(zip(map(id, groups), rates, strict=True))

    def _limits(
        self, calls: list[_Call], window: rule.Window, loss: float | None
    ) -> dict[str, float]:
        """The groups' numbers of a step that the loss limits; the calls are what it would be."""
        common = self.param_groups[0]
        if self._pieces is not None:
            self.observe_clipping(*self._pieces.clipping())
        share = rule.share_left(common["clipped_to"], float(self._clipped_to), common["steps"])
        limit = common["step_limit"]
        if loss is not None:
            waiting = () if self._pieces is None else self._waiting(self._pieces, window)
            limit = self._step_limit(chain(calls, waiting), window, loss, share)
        return self._limited(window, limit) | {"clipped_to": share}

    def _waiting(self, pieces: Pieces, window: rule.Window) -> Iterator[_Call]:
        """The calls of the pieces that DeepSpeed steps after this one; they get no state here."""
        common, rates = self.param_groups[0], self._rates()
        corrected = common["bias_correction"] or common["steps"] > 0
        decay = window.decay(common["second_moment_window"])
        for piece, view, group in pieces.waiting(self.param_groups, float(self._clipped_to)):
            states = NewState({view: dict(self.state.get(piece, {}))}, corrected)
            groups = [{**group, "params": [view]}]
            moves = moves_of(groups, states, share_reader(), kernels.Overlaps())
            for zero_share, _, buckets in moves[0]:
                share = rule.share_after(zero_share, decay)
                five = rule.coefficients(group, window, rates[id(group)], share)
                yield buckets, _coefficients(group, five, noise=0), group

    def _step_limit(
        self, calls: Iterable[_Call], window: rule.Window, loss: float, share_left: float
    ) -> float:
        """What the loss makes of the step that the calls would be; see `rule.share_left`."""
        if loss <= self.param_groups[0]["loss_floor"]:
            self._say_at_floor()
        alone = self._steps_alone()
        predicted = 0.0
        for buckets, c, group in calls:
            for norm, ordinal in kernels.squared_norms(buckets, c):
                weight = 1.0
                if not (alone or self._pieces):
                    weight = ranks.weight_of(group["params"][ordinal], self.loss_group)
                predicted += rule.predicted_decrease(c.step_size, c.momentum, weight * norm)
        predicted /= share_left
        if not alone:
            predicted = float(self._total(predicted))
        return self._limit_of(predicted, window, loss)

    def _among_ranks(self) -> tuple[Callable[[Tensor], float], Callable[[Tensor], Tensor]]:
        """How numbers of the ranks add up: the weight of a parameter, and the sum of a number."""
        return lambda param: ranks.weight_of(param, self.loss_group), self._total

    def _total(self, number: Tensor | float | None) -> Tensor:
        return ranks.total_of(number, ranks.home_of(self.param_groups), self.loss_group)

    def _limit_of(self, predicted: float, window: rule.Window, loss: float) -> float:
        common = self.param_groups[0]
        schedule = float(rule.share_of_peak(self._all_groups()))
        return rule.step_limit(common, window, loss, schedule, predicted, common["step_limit"])

    def _limited(self, window: rule.Window, limit: float) -> dict[str, float]:
        """The groups' numbers of a step limit."""
        groups = self._all_groups()
        lr = limit * float(rule.learning_rates(groups)[0])
        effective = rule.effective_lr(groups[0], window, lr)
        return {"step_limit": limit, "effective_lr": effective}

    def _make_step(
        self,
        observation: Observation | None,
        moving: list[dict[str, Any]],
        changes: list[tuple[dict[str, Any], dict[str, Any]]],
        calls: list[_Call],
    ) -> None:
        if observation is not None:
            observation.mark_moved(moving)
        # One call of C, in which no signal's handler runs: Ctrl-C finds all numbers before the step
        # or all after it.
        deque(starmap(dict.update, changes), maxlen=0)
        for buckets, coefficients, group in calls:
            self._skipped += kernels.run(
                buckets, coefficients, use_foreach=group["foreach"], use_fused=group["fused"]
            )
        if self._skipped and all(isinstance(each, bool) for each in self._skipped):
            self._warn_of_skipped_elements()

    def _agreed_on(self, observation: Observation | None) -> Agreed | AgreedOnDevice:
        """What all ranks make of this step; asked of them once for one observation."""
        feed = self._feed
        if observation is None and self._creates_state():
            return Agreed(None, 0, makes_state=True)  # without the others: a rank may do so alone
        if observation is None:
            agreed = feed.ahead or self._agree(None, self._of_scaler("found_inf"))
        else:
            common = self.param_groups[0]
            limited = common["loss_limit"] is not None and self._pieces is None
            if observation.used and (common["capturable"] or limited):
                name = "capturable=True" if common["capturable"] else "loss_limit"
                raise RuntimeError(f"{name} takes one step() a loss, for all parameters")
            if observation.agreed is None:
                observation.agreed = self._agree(observation, self._of_scaler("found_inf"))
            agreed = observation.agreed
        if isinstance(agreed, Agreed):
            lacks_loss = agreed.loss is None and not agreed.idle
        else:
            lacks_loss = observation is None and self._has_gradient()
        if lacks_loss and not ranks.joined_without(self):
            self._go_without_loss()
        self._warn_of_skipped_elements()
        return agreed

    # ---- the ranks ----

    def _steps_alone(self) -> bool:
        """Whether no other rank steps together with this one."""
        if ranks.size(self.loss_group) < 2:
            return True
        if ranks.joined_without(self):
            self._say_once(_NOT_JOINED)
            return True
        return self._feed.local or ranks.is_local(self)

    def _agree(
        self, observation: Observation | None, overflow: Tensor | float | None
    ) -> Agreed | AgreedOnDevice:
        """What all ranks make of their losses and of what their gradient scalers found."""
        share = Share(None, 0, self._has_gradient(), 0.0 if overflow is None else overflow)
        if observation is not None and not ranks.joined_without(self):
            share = share._replace(loss=observation.loss, micro_batches=observation.micro_batches)
        alone = self._steps_alone()
        if not alone:
            if share.micro_batches > 1 and ranks.joined_behind_others(self):
                raise RuntimeError(
                    "Join([model, optimizer]) makes a step of each forward pass, and this step is "
                    f"of {share.micro_batches}: with gradient accumulation use Join([model])"
                )
            Join.notify_join_context(self)
        return self._asked_of_ranks(share, alone)

    def _asked_of_ranks(self, share: Share | None, alone: bool = False) -> Agreed | AgreedOnDevice:
        if alone:
            self._has_stepped_alone = True
        elif not self._same_setup:
            ignored = checkpoint.PROGRESS if self._has_stepped_alone else ()
            ranks.check_setup(self, self.loss_group, ignored)
            self._same_setup = True
        device = ranks.home_of(self.param_groups)
        if not self.param_groups[0]["capturable"]:
            agreed = ranks.agree(share, device, self.loss_group, alone)
            stands_out = progress.stands_out(self.param_groups[0], agreed.loss)
            return agreed._replace(stands_out=stands_out and not agreed.overflow)
        if self._device_window is None:
            self._device_window = capturable.DeviceWindow(self.param_groups, device)
        self._device_window.check(self._params())
        on_device = ranks.agree_on_device(share, device, self.loss_group, alone)
        if self._scaler is not None and not alone:  # whose scale is to stay that of the others
            found = self._scaler._per_optimizer_states[id(self)]["found_inf_per_device"]
            for each in found.values():
                each.copy_(on_device.overflow)
        return on_device

    @torch.no_grad()
    def _shadow_step(self) -> None:
        """Moves the window as the other ranks do, which have inputs left where this one has none.

        Parameters and state stay: the model's own join hook brings the parameters at the end.
        """
        agreed = self._asked_of_ranks(None)
        if isinstance(agreed, AgreedOnDevice):
            assert self._device_window is not None
            self._device_window.step(
                self.param_groups,
                [[] for _ in self.param_groups],
                agreed,
                total=lambda _: self._total(None),
            )
        elif not (agreed.idle or agreed.is_refused or agreed.overflow):
            common = self.param_groups[0]
            numbers = progress.advanced(
                common, agreed.loss, agreed.micro_batches, agreed.stands_out
            )
            limited = common["loss_limit"] is not None and not agreed.stands_out
            if limited and agreed.loss is not None:
                total = self._total(None)
                window = progress.window_of({**common, **numbers})
                limit = self._limit_of(float(total), window, agreed.loss)
                numbers |= self._limited(window, limit)
            for group in self.param_groups:
                group.update(numbers)

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """For `torch.distributed.algorithms.Join([model, optimizer])`: uneven inputs."""
        return ranks.Shadow(self)

    @property
    def join_device(self) -> torch.device:
        """Where the collectives of `Join` run."""
        return ranks.device_of(ranks.home_of(self.param_groups), self.loss_group)

    @property
    def join_process_group(self) -> Any:
        """The process group over whose ranks the loss is averaged."""
        return self.loss_group or torch.distributed.group.WORLD

    def _has_gradient(self) -> bool:
        return next(self._grads(), None) is not None

    def _be_known(self) -> None:
        Joinable.__init__(self)
        ranks.watch()
        DWMGrad.live.add(self)

    def _warn_of_skipped_elements(self) -> None:
        """Warns once if elements were skipped; an accelerator is asked with the next loss."""
        if self._skipped and _ELEMENTS_SKIPPED not in self._said:
            if bool(sum(self._skipped)):  # one host sync
                self._say_once(_ELEMENTS_SKIPPED)
        self._skipped.clear()

    def _of_scaler(self, name: str) -> Tensor | None:
        found = getattr(self, name, None)  # there while a gradient scaler leaves its work to step()
        return found if isinstance(found, Tensor) else None

    def _params(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _states(self) -> Iterator[dict[str, Any]]:
        """Of the parameters; what others keep under other keys may be anything."""
        return (self.state[param] for param in self._params() if param in self.state)

    def _grads(self) -> Iterator[Tensor]:
        return (p.grad for p in self._params() if p.grad is not None)

    def _creates_state(self) -> bool:
        """Whether this is how torch.distributed.checkpoint makes state: no loss, lr and grads 0."""
        if any(state.BUFFERS[0] in own for own in self._states()):
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
            "itself; elsewhere call optimizer.observe_loss(loss) before step() (of what "
            "accelerator.prepare() returned: optimizer.optimizer.observe_loss(loss)), or "
            'step(loss=loss). missing_loss="hold" silences this.'
        )
        if policy == "error":
            raise RuntimeError(message)
        self._say_once(message)

    def _say_at_floor(self) -> None:
        self._say_once(_AT_FLOOR.format(self.param_groups[0]["loss_floor"]))

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)

    def _check_learning_rates(self) -> None:
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
        self._clipped_to = 1.0
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As in torch."""
        self._read_device()
        self._plan = None
        for own in self._states():  # torch.distributed.checkpoint may load into what it gets
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
        if "loss_group" not in self.__dict__:  # load_state_dict() comes by here, too
            self.loss_group = None
            self._same_setup = self._has_stepped_alone = self._follows_length = False
            self._be_known()
        for group in self.param_groups:  # of a pickle that an earlier version made
            checkpoint.bring_up(group, self.state)
        self._forget_losses()

    def _forget_losses(self) -> None:
        self._device_window = None
        self._feed = LossFeed()
        self._skipped = []
        self._overlaps = kernels.Overlaps()
        self._plan = None
        self._said = set()
        self._scaler = None
        self._clipped_to = 1.0
        self._pieces = None


_Call = tuple[list[kernels.Bucket], kernels.Coefficients, dict[str, Any]]
"""What `kernels.run` gets, and the parameter group."""


def _scaled(c: kernels.Coefficients, limit: float) -> kernels.Coefficients:
    return c._replace(step_size=c.step_size * limit, shrink=c.shrink * limit)


def _coefficients(
    group: dict[str, Any], five: tuple[float, float, float, float, float], noise: int
) -> kernels.Coefficients:
    return kernels.Coefficients(
        *five, noise, state.stochastic_state(group), group["stochastic_rounding"]
    )


_NOT_JOINED = (
    "this step is made in a Join for uneven inputs that does not know of the optimizer, so the "
    "window holds: ranks without inputs could not take part in averaging the loss. Cure: "
    "Join([model, optimizer]), or accelerator.join_uneven_inputs([model, optimizer.optimizer]) "
    "with what accelerator.prepare() returned"
)
_STEP_SKIPPED = "the loss is not finite: this step is skipped, nothing has changed"
_STANDS_OUT = (
    "a loss stands out from the recent ones: loss_guard skips this step, and others like it. "
    "optimizer.param_groups[0]['guarded_steps'] counts them, as the Trainer's logs do"
)
_AT_FLOOR = (
    "a loss is at loss_floor={}, or below it, so it does not say how far a step may go: the last "
    "step_limit holds. Set loss_floor to a number that the loss cannot reach"
)
_ELEMENTS_SKIPPED = (
    "a gradient has elements that are not finite, or whose square is not: those elements of the "
    "parameters and of the state stay as they were, the others have moved"
)
