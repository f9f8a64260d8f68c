"""How a step becomes one step of all ranks."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState
from torch.distributed.algorithms.join import Join, Joinable
from torch.optim import Optimizer

from . import distributed, kernels, progress, ranks, state
from .capturable import DeviceWindow
from .losses import LossFeed, Observation
from .plan import Plan
from .ranks import Agreed, Share
from .zero import Pieces


class Agreeing(Optimizer, Joinable):
    """An optimizer whose ranks step together, by one loss."""

    live: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()
    """All that there are, for hosts that do not tell whose backward pass they make."""
    _feed: LossFeed
    _makes_state = False
    """Whether torch.distributed.checkpoint lets it make its state just now."""

    def _begin_alone(self, loss_group: Any) -> None:
        """Before anything is known of the other ranks."""
        self.loss_group = loss_group
        self._same_setup = self._has_stepped_alone = False
        Joinable.__init__(self)
        self.live.add(self)
        ranks.watch()

    def _begin_anew(self) -> None:
        self.__dict__.setdefault("_feed", LossFeed()).begin_anew()
        self._device_window: DeviceWindow | None = None
        self._plan: Plan | None = None
        self._overlaps = kernels.Overlaps()
        self._pieces: Pieces | None = None
        self._scaler: torch.amp.GradScaler | None = None
        self._skipped: list[bool | Tensor] = []
        self._said: set[str] = set()

    # ---- what the ranks make of it ----

    def _agreed_on(self, observation: Observation | None) -> Agreed:
        """What all ranks make of this step; asked of them once for one observation.

        Raises:
            RuntimeError: if ranks are not set up alike, or if there is no loss where one must be.
        """
        if observation is None and self._creates_state():
            # without the others: a rank may do so alone
            return Agreed(-math.inf, 0, makes_state=True)
        agreed = self._feed.ahead if observation is None else observation.agreed
        if agreed is None:
            agreed = self._agree(observation, self._of_scaler("found_inf"))
        if observation is not None:
            observation.agreed = agreed
        if agreed.on_device:
            lacks_loss = observation is None and self._has_gradient()
        else:
            lacks_loss = agreed.loss == -math.inf
        if lacks_loss and not ranks.joined_without(self):
            self._go_without_loss()
        return agreed

    def _steps_alone(self) -> bool:
        """Whether no other rank steps together with this one."""
        if ranks.size(self.loss_group) < 2:
            return True
        if ranks.joined_without(self):
            self._say_once(_NOT_JOINED)
            return True
        return ranks.is_local(self)

    def _agree(self, observation: Observation | None, overflow: Tensor | float | None) -> Agreed:
        """What all ranks make of their losses and of what their gradient scalers found."""
        share = Share(None, 0, self._has_gradient(), 0.0 if overflow is None else overflow)
        if observation is not None and not ranks.joined_without(self):
            share = share._replace(loss=observation.loss, micro_batches=observation.micro_batches)
        steps_alone = self._steps_alone()
        if not steps_alone:
            if share.micro_batches > 1 and ranks.joined_behind_others(self):
                raise RuntimeError(
                    "Join([model, optimizer]) makes a step of each forward pass, and this step is "
                    f"of {share.micro_batches}: with gradient accumulation use Join([model])"
                )
            Join.notify_join_context(self)
        return self._asked_of_ranks(share, steps_alone)

    def _asked_of_ranks(self, share: Share | None, steps_alone: bool = False) -> Agreed:
        if steps_alone:
            self._has_stepped_alone = True
        elif not self._same_setup:
            ignored = progress.PROGRESS if self._has_stepped_alone else ()
            distributed.check_setup(self, ignored)
            self._same_setup = True
        device, stays = ranks.home_of(self.param_groups), self.param_groups[0]["capturable"]
        if stays:
            if self._device_window is None:
                self._device_window = DeviceWindow(self.param_groups, device)
                self._plan = None  # the ages that it found are those of the window before
            self._device_window.check(self._params())
        agreed = ranks.agree(share, device, self.loss_group, steps_alone, stays)
        if self._scaler is not None and not steps_alone:  # its scale is to stay that of the others
            found = self._scaler._per_optimizer_states[id(self)]["found_inf_per_device"]
            for each in found.values():
                each.copy_(agreed.overflow)
        return agreed

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
        observation = feed.waiting
        agreed = self._agree(observation, sum(each.to(found[0].device) for each in found))
        if observation is None:
            feed.ahead = agreed
        else:
            observation.agreed = agreed
        if agreed.lacks_gradient:
            raise RuntimeError(
                "a gradient scaler makes this step, and a rank has no gradient: every rank must "
                "have run backward() before scaler.step(optimizer)"
            )
        for each in found:
            each.fill_(agreed.overflow)

    def _of_scaler(self, name: str) -> Tensor | None:
        found = getattr(self, name, None)  # there while a gradient scaler leaves its work to step()
        return found if isinstance(found, Tensor) else None

    @property
    def join_device(self) -> torch.device:
        """Where the collectives of `Join` run."""
        return ranks.device_of(ranks.home_of(self.param_groups), self.loss_group)

    @property
    def join_process_group(self) -> Any:
        """The process group over whose ranks the loss is averaged."""
        return self.loss_group or torch.distributed.group.WORLD

    # ---- a step without a loss ----

    def _creates_state(self) -> bool:
        """Whether this is how others make state: no loss, lr and gradients 0, no state as yet.

        Of several ranks one may look so by itself: its parts are empty, and lr is 0 in a warm-up.
        """
        if self._makes_state or ranks.size(self.loss_group) > 1:
            return self._makes_state
        if any(state.BUFFERS[0] in own for own in self._states()):
            return False
        if any(float(group["lr"]) != 0 for group in self.param_groups):
            return False
        return self._has_gradient() and not any(
            state.local_part(grad).any() for grad in self._grads()
        )

    def _go_without_loss(self) -> None:
        policy = self.param_groups[0]["missing_loss"]
        if policy == "error":
            raise RuntimeError(_NO_LOSS)
        self._say_once(_NO_LOSS, policy == "warn")

    def _say_once(self, message: str, happened: bool = True) -> None:
        if happened and message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)

    # ---- what there is ----

    def _params(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _states(self) -> Iterator[dict[str, Any]]:
        """Of the parameters; what others keep under other keys may be anything."""
        return (self.state[param] for param in self._params() if param in self.state)

    def _grads(self) -> Iterator[Tensor]:
        return (p.grad for p in self._params() if p.grad is not None)

    def _has_gradient(self) -> bool:
        return next(self._grads(), None) is not None


_NO_LOSS = (
    "step() got no loss, so the window holds, and so does the last step_limit; auto takes no step "
    "where there is none yet. accelerator.backward(loss) brings it by itself; "
    "elsewhere call optimizer.observe_loss(loss) before step() (of what accelerator.prepare() "
    "returned: optimizer.optimizer.observe_loss(loss)), or step(loss=loss). "
    'missing_loss="hold" silences this.'
)
_NOT_JOINED = (
    "this step is made in a Join for uneven inputs that does not know of the optimizer, so the "
    "window holds: ranks without inputs could not take part in averaging the loss. Cure: "
    "Join([model, optimizer]), or accelerator.join_uneven_inputs([model, optimizer.optimizer]) "
    "with what accelerator.prepare() returned"
)
