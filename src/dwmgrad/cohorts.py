"""What a step moves: the parameters with a gradient, sorted by how long each has been moving."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from . import state
from .kernels import Row

States = dict[Tensor, dict[str, Any]]


class Cohort(NamedTuple):
    """Parameters of one group whose mean squares have seen the same decays since they began."""

    age: Any  # what they have in common; see `cohorts_of`
    rows: list[Row]  # for the kernels; of a DTensor this rank's shard, where it has elements
    states: list[dict[str, Any]]  # the parameters', those of empty shards too


class NewState:
    """Makes the state of parameters that have none, and takes it back if their step fails.

    With `corrected`, what is made has a `state.ZERO_SHARE` above 0.
    """

    def __init__(self, states: States, corrected: bool) -> None:
        self.states = states
        self._corrected = corrected
        self._made: list[Tensor] = []

    def of(self, param: Tensor, state_dtype: str | None) -> dict[str, Any]:
        """The parameter's state, made if there is none."""
        own = self.states[param]
        if state.BUFFERS[0] not in own and state.BUFFERS[1] not in own:
            self._made.append(param)
            own.update(state.create(param, state_dtype, self._corrected))
        return own

    def undo(self) -> None:
        """Takes back what was made, and leaves what others keep there."""
        for param in self._made:
            own = self.states[param]
            for name in (*state.BUFFERS, *state.SCALES, state.ZERO_SHARE):
                own.pop(name, None)
            if not own:
                del self.states[param]


def cohorts_of(
    group: dict[str, Any], states: NewState, age: Callable[[dict[str, Any]], Hashable]
) -> list[Cohort]:
    """The group's parameters that have a gradient; these and every trainable one get their state.

    So every rank has the same keys, whichever parameters have a gradient there. They are sorted by
    the `age` of their state.
    """
    found: dict[Hashable, Cohort] = {}
    for ordinal, param in enumerate(group["params"]):
        grad = param.grad
        if grad is None and not param.requires_grad:
            continue
        own = states.of(param, group["state_dtype"])
        if grad is None:
            continue
        key = age(own)
        cohort = found.setdefault(key, Cohort(key, [], []))
        cohort.states.append(own)
        v, s = state.buffers_of(own)
        if type(param) is not Parameter and hasattr(param, "to_local"):
            if grad.placements != param.placements:
                grad = grad.redistribute(placements=param.placements)
            param, grad = param.to_local(), grad.to_local()
        if param.numel() and not param.is_meta:
            cohort.rows.append((param, grad, v, s, ordinal))
    return list(found.values())


def names_of(groups: list[dict[str, Any]], cohorts: list[list[Cohort]]) -> list[str]:
    """The cohorts' parameters, in their order, by their names or else by their places."""
    return [
        f"parameter {group['param_names'][ordinal]!r}"
        if group.get("param_names")
        else f"parameter {ordinal} of group {index}"
        for index, (group, own) in enumerate(zip(groups, cohorts, strict=True))
        for cohort in own
        for *_, ordinal in cohort.rows
    ]
