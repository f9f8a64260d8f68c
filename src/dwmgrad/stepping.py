"""How a step is decided, and made."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, starmap
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms.join import JoinHook

from . import kernels, limit, progress, ranks, rule, state
from .agreeing import Agreeing
from .capturable import DeviceWindow
from .losses import Observation
from .plan import Age, Call, Moves, Plan, calls_of, moves_of, predicted
from .ranks import Agreed
from .scalars import where
from .zero import Pieces

Changes = list[tuple[dict[str, Any], dict[str, Any]]]
"""Groups and states, and what is new in each."""


class Stepping(Agreeing):
    """An optimizer which decides all of a step before it moves."""

    def _prepared(
        self, observation: Observation | None, agreed: Agreed
    ) -> Callable[[], None] | None:
        """Checks and readies all that a step needs; what it returns makes the step."""
        groups, common = self.param_groups, self.param_groups[0]
        at_once = common["capturable"] or (common["loss_limit"] is not None and not self._pieces)
        if observation is not None and observation.used and at_once:
            name = "capturable=True" if common["capturable"] else "loss_limit"
            raise RuntimeError(f"{name} takes one step() a loss, for all parameters")
        self._warn_of_skipped_elements()
        if not (agreed.on_device or agreed.happens):
            return None
        moving = [g for g in groups if observation is None or id(g) not in observation.moved]
        window = self._device_window if agreed.on_device else None
        moves = self._moves(window, begins=common["steps"] == (0 if moving else 1))
        if window is not None:
            scale, clipped_to = self._of_scaler("grad_scale"), self._feed.clipped_to
            return lambda: window.step(groups, moves, agreed, self._predicted, scale, clipped_to)
        if agreed.makes_state:
            return None
        numbers: dict[str, Any] = {}
        now, happens = progress.window_of(common), not (observation and observation.stands_out)
        if moving:
            numbers, now, happens, _ = progress.advanced(moving[0], agreed)
        if observation is not None:
            observation.stands_out = not happens
        aged: Changes = []
        calls: list[Call] = []
        if happens:
            noise = numbers.get("steps", common["steps"])
            aged, calls = self._on_host(moves, now, noise)
            if common["loss_limit"] is not None:
                # of several step() calls for one loss the first answers for all
                limited = observation and observation.limited
                limited = limited or self._limits(calls, now, agreed)
                if observation is not None:
                    observation.limited = limited
                calls = [call.limited(limited["step_limit"]) for call in calls]
                numbers |= limited
        changes = [(group, numbers) for group in moving] + aged
        return lambda: self._make_step(observation, moving, changes, calls)

    def _moves(self, window: DeviceWindow | None, begins: bool) -> Moves:
        """What the step moves, by age; of what the step before moved only the news is checked."""
        groups = self.param_groups
        begins = begins if window is None else window.begins
        age: Age = state.zero_share_of if window is None else window.age
        moves = self._plan.renew(groups, self.state, age) if self._plan else None
        if moves is None:
            self._plan = None
            if groups[0]["loss_limit"] is not None:
                ranks.check_parts(self._params(), self.loss_group)
            if window is not None:
                window.keep_only(self.state.values())
            corrected = groups[0]["bias_correction"] or not begins
            moves = moves_of(groups, self.state, corrected, age, self._overlaps)
            self._plan = Plan(groups, self.state, moves, self._overlaps)
        return moves

    def _on_host(self, moves: Moves, window: rule.Window, noise: int) -> tuple[Changes, list[Call]]:
        """What becomes of the parameters' ages, and the calls of the kernels."""
        common, rates = self.param_groups[0], self._rates()
        share_of = partial(rule.share_after, decay=window.decay(common["second_moment_window"]))
        aged: Changes = []
        for age, states, _ in chain.from_iterable(moves):
            if age:
                new = {state.ZERO_SHARE: state.share_of(share_of(age))}
                aged += [(kept, new) for kept in states]
        own = [rates[id(group)] for group in self.param_groups]
        return aged, calls_of(self.param_groups, moves, window, own, share_of, noise)

    def _limits(
        self, calls: Iterable[Call] | None, window: rule.Window, agreed: Agreed
    ) -> dict[str, float]:
        """The groups' numbers of a step that the loss limits; calls None: of other ranks alone."""
        groups = self._all_groups()
        common, step_limit = groups[0], groups[0]["step_limit"]
        if self._pieces is not None:
            self._feed.clipped_to = limit.share_kept(*self._pieces.clipping())
        share, clipped_to = common["clipped_to"], float(self._feed.clipped_to)
        if calls is not None:
            share = limit.share_left(common, clipped_to)
        if agreed.counts:
            if agreed.loss <= common["loss_floor"]:
                self._say_at_floor()
            if calls is not None and self._pieces is not None:
                calls = chain(calls, self._waiting(self._pieces, window))
            decrease = float(self._predicted(calls, share, clipped_to))
            schedule = float(limit.share_of_peak(groups))
            step_limit = limit.step_limit(common, window, agreed.loss, schedule, decrease)
        effective = limit.effective_lr(common, window, step_limit * max(self._rates().values()))
        return {"step_limit": step_limit, "effective_lr": effective, "clipped_to": share}

    def _predicted(
        self, calls: Iterable[Call] | None, share: Any, clipped_to: Any, *on_device: Any
    ) -> Any:
        """As `plan.predicted`, of all ranks; calls None where this one has no more steps.

        It is that of the gradients before clipping, of which `share` is left (see
        `limit.share_left`); NaN where clipping hid them.
        """
        number, alone = None, calls is not None and self._steps_alone()
        if calls is not None:
            copied = not (alone or self._pieces)  # by other ranks
            weight_of = partial(ranks.weight_of, group=self.loss_group)
            number = predicted(calls, weight_of if copied else lambda _: 1.0, *on_device)
            number = number / where(clipped_to > 0, share, math.nan)
        if alone:
            return number
        return ranks.total_of(number, ranks.home_of(self.param_groups), self.loss_group)

    def _all_groups(self) -> list[dict[str, Any]]:
        """The parameter groups, of which DeepSpeed may show but one at a time."""
        return self._pieces.groups if self._pieces else self.param_groups

    def _rates(self) -> dict[int, float]:
        """Each group's learning rate, by the group's id."""
        groups = self._all_groups()
        rates = map(float, limit.learning_rates(groups))
        return dict(zip(map(id, groups), rates, strict=True))

    def _waiting(self, pieces: Pieces, window: rule.Window) -> Iterator[Call]:
        """The calls of the pieces that DeepSpeed steps after this one; they get no state here."""
        common, rates = self.param_groups[0], self._rates()
        corrected = common["bias_correction"] or common["steps"] > 0
        share_of = partial(rule.share_after, decay=window.decay(common["second_moment_window"]))
        for piece, view, group in pieces.waiting(self.param_groups, float(self._feed.clipped_to)):
            own = [{**group, "params": [view]}]
            states = {view: dict(self.state.get(piece, {}))}
            moves = moves_of(own, states, corrected, state.zero_share_of, kernels.Overlaps())
            yield from calls_of(own, moves, window, [rates[id(group)]], share_of, noise=0)

    def _make_step(
        self,
        observation: Observation | None,
        moving: list[dict[str, Any]],
        changes: Changes,
        calls: list[Call],
    ) -> None:
        if observation is not None:
            observation.moved.update(map(id, moving))
        # One call of C, in which no signal's handler runs: Ctrl-C finds all numbers before the step
        # or all after it.
        deque(starmap(dict.update, changes), maxlen=0)
        for buckets, numbers, _ in calls:
            self._skipped += kernels.run(buckets, numbers)
        if all(isinstance(each, bool) for each in self._skipped):
            self._warn_of_skipped_elements()

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """For `torch.distributed.algorithms.Join([model, optimizer])`: uneven inputs."""
        hook = JoinHook()  # of a rank without inputs, at each step of those that have some
        hook.main_hook = self._shadow_step  # type: ignore[method-assign]
        return hook

    @torch.no_grad()
    def _shadow_step(self) -> None:
        """Moves the window as the other ranks do, which have inputs left where this one has none.

        Parameters and state stay: the model's own join hook brings the parameters at the end.
        """
        agreed, groups = self._asked_of_ranks(None), self.param_groups
        if self._device_window is not None:
            nothing: Moves = [[] for _ in groups]
            self._device_window.step(
                groups, nothing, agreed, lambda _, *given: self._predicted(None, *given)
            )
        elif agreed.happens and not agreed.overflow:
            numbers, window, happens, _ = progress.advanced(groups[0], agreed)
            if groups[0]["loss_limit"] is not None and happens:
                numbers |= self._limits(None, window, agreed)
            for group in groups:
                group.update(numbers)

    # ---- what is said ----

    def _warn_of_skipped_elements(self) -> None:
        """Warns once if elements were skipped; an accelerator is asked with the next loss."""
        if self._skipped and ELEMENTS_SKIPPED not in self._said:
            home = ranks.home_of(self.param_groups)  # a model may be on several devices
            found = (each.to(home) if isinstance(each, Tensor) else each for each in self._skipped)
            self._say_once(ELEMENTS_SKIPPED, bool(sum(found)))  # one host sync
        self._skipped.clear()

    def _say_at_floor(self) -> None:
        self._say_once(_AT_FLOOR.format(self.param_groups[0]["loss_floor"]))


STEP_SKIPPED = "the loss is not finite: this step is skipped, nothing has changed"
STANDS_OUT = (
    "a loss stands out from the recent ones: loss_guard skips this step, and others like it. "
    "optimizer.param_groups[0]['guarded_steps'] counts them, as the Trainer's logs do"
)
_AT_FLOOR = (
    "a loss is at loss_floor={}, or below it, so it does not say how far a step may go: the last "
    "step_limit holds; auto takes no step where there is none yet. Set loss_floor to a number that "
    "the loss cannot reach"
)
ELEMENTS_SKIPPED = (
    "a gradient has elements that are not finite, or whose square is not: those elements of the "
    "parameters and of the state stay as they were, the others have moved"
)
