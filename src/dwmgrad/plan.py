"""What a step moves, checked as a whole; the next step checks only what can have changed since."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from . import kernels, limit, rule, state
from .kernels import Bucket, Overlaps, Row, Tensors
from .scalars import Number
from .state import BUFFERS, SCALES, buffers_of

Age = Callable[[dict[str, Any]], Hashable]
States = dict[Tensor, dict[str, Any]]


class Move(NamedTuple):
    """Parameters of one group whose mean squares have seen the same decays since they began."""

    age: Any  # what they have in common
    states: list[dict[str, Any]]  # the parameters', those of empty shards too
    buckets: list[Bucket]  # for the kernels; of a DTensor this rank's shard, where it has elements


Moves = list[list[Move]]
"""For each parameter group its parameters, by their age."""


def moves_of(
    groups: list[dict[str, Any]], states: States, corrected: bool, age: Age, overlaps: Overlaps
) -> Moves:
    """Everything that a step of these groups moves; nothing has moved yet.

    Every trainable parameter gets its state, whichever have a gradient here, so that all ranks have
    the same keys; with `corrected`, its `state.ZERO_SHARE` is above 0. What is made is taken back
    if anything does not fit.

    Raises:
        RuntimeError: if tensors do not fit together; it names the parameter.
    """
    made: list[Tensor] = []
    found: list[dict[Hashable, tuple[list[Row], list[dict[str, Any]]]]] = []

    def name_of(place: int) -> str:
        rows = [(n, row) for n, own in enumerate(found) for each, _ in own.values() for row in each]
        index, (*_, ordinal) = rows[place]
        names = groups[index].get("param_names")
        return f"parameter {names[ordinal]!r}" if names else f"parameter {ordinal} of group {index}"

    try:
        for group in groups:
            found.append({})
            for ordinal, param in enumerate(group["params"]):
                if param.grad is None and not param.requires_grad:
                    continue
                own = states[param]
                if BUFFERS[0] not in own and BUFFERS[1] not in own:
                    made.append(param)
                    own.update(state.create(param, group["state_dtype"], corrected))
                if param.grad is not None:
                    rows, owns = found[-1].setdefault(age(own), ([], []))
                    rows += _row_of(param, own, ordinal)
                    owns.append(own)
        sets = [rows for own in found for rows, _ in own.values()]
        buckets = iter(kernels.prepare(sets, overlaps, name_of))
    except BaseException:
        for param in made:  # what others keep there stays
            for key in (*BUFFERS, *SCALES, state.ZERO_SHARE):
                states[param].pop(key, None)
            if not states[param]:
                del states[param]
        raise
    return [[Move(key, owns, next(buckets)) for key, (_, owns) in own.items()] for own in found]


def _row_of(param: Any, own: dict[str, Any], ordinal: int) -> list[Row]:
    """What the kernels get of a parameter with a gradient; nothing of an empty shard."""
    grad = param.grad
    if type(param) is not Parameter and hasattr(param, "to_local"):
        if grad.placements != param.placements:
            grad = grad.redistribute(placements=param.placements)
        param, grad = param.to_local(), grad.to_local()
    return [(param, grad, *buffers_of(own), ordinal)] if param.numel() and not param.is_meta else []


class _Watched(NamedTuple):
    """A parameter that moved, as it was then; weak, so that its state can be freed in between."""

    param: Tensor
    ordinal: int
    own: int  # the place of its state in the optimizer's
    shape: Any
    width: int  # bytes of an element
    address: int
    parts: list[tuple[str, Any, int, Any]]  # of its state: name, itself, address, shape


class _Cohort(NamedTuple):
    owns: list[int]
    buckets: list[list[_Watched]]


class Plan:
    """Remembers what `moves_of` found, to find it again with the next step's gradients.

    Most steps then need not ask everything that `kernels.fit` asks: a tensor that is the same
    object, at the same address, of the same shape, has not changed in what it asks of it. The plan
    keeps neither gradients nor state alive.
    """

    def __init__(
        self, groups: list[dict[str, Any]], states: States, moves: Moves, overlaps: Overlaps
    ) -> None:
        self._overlaps = overlaps
        self._params = _ids_of(groups)  # of those that are kept alive below
        self._owns = list(map(id, states.values()))
        places = {own: place for place, own in enumerate(self._owns)}
        self._groups = [[_watched(move, places) for move in group] for group in moves]
        cohorts = list(chain.from_iterable(self._groups))
        # where a tensor is not plain and dense, every step asks everything
        self._simple = None not in cohorts
        moving = {id(row.param) for each in cohorts if each for row in chain(*each.buckets)}
        every = (p for group in groups for p in group["params"])
        self._idle = [(p, p.requires_grad) for p in every if id(p) not in moving]

    def renew(self, groups: list[dict[str, Any]], states: States, age: Age) -> Moves | None:
        """As `moves_of`, or None if anything but the gradients may have changed since."""
        owns = list(states.values())
        if not self._simple or list(map(id, owns)) != self._owns:
            return None
        if _ids_of(groups) != self._params:
            return None
        for param, trained in self._idle:
            if param.requires_grad is not trained or param.grad is not None:
                return None
        read: list[int] = []
        moves: Moves = []
        for group in self._groups:
            moves.append([])
            for cohort in group:
                assert cohort is not None
                found = [_renewed(rows, owns, read) for rows in cohort.buckets]
                if None in found:
                    return None
                members = [owns[place] for place in cohort.owns]
                buckets = [Bucket(tensors, True) for tensors in found if tensors]
                moves[-1].append(Move(age(members[0]), members, buckets))
        return None if self._overlaps.reached(read) else moves


def _watched(move: Move, places: dict[int, int]) -> _Cohort | None:
    """None where a row is not a plain dense parameter of its own."""
    ordinals = sorted(chain.from_iterable(bucket.tensors.ordinals for bucket in move.buckets))
    if len(set(ordinals)) != len(move.states):  # some are empty, or given twice
        return None
    owns = dict(zip(ordinals, move.states, strict=True))
    buckets = []
    for tensors, flat in move.buckets:
        rows = []
        for param, ordinal in zip(tensors.params, tensors.ordinals, strict=True):
            own = owns[ordinal]
            if not flat or type(param) not in (Parameter, Tensor) or not param.is_contiguous():
                return None
            parts = [(n, own[n]) for n in BUFFERS + SCALES if n in own]
            seen = [(n, weakref.ref(part), part.data_ptr(), part.shape) for n, part in parts]
            form = param.shape, param.element_size(), param.data_ptr()
            rows.append(_Watched(param, ordinal, places[id(own)], *form, seen))
        buckets.append(rows)
    return _Cohort([places[id(own)] for own in move.states], buckets)


def _renewed(rows: list[_Watched], owns: list[dict[str, Any]], read: list[int]) -> Tensors | None:
    """The bucket with the present gradients, whose addresses and bytes are added to `read`."""
    first = rows[0].param
    dtype, device, on_cpu = first.dtype, first.device, first.is_cpu
    found: list[Row] = []
    for param, ordinal, place, shape, width, address, parts in rows:
        grad = param.grad
        if (
            type(grad) is not Tensor
            or param.data_ptr() != address
            or param.shape != shape
            or grad.shape != shape
            or param.dtype is not dtype
            or grad.dtype is not dtype
            or not (param.is_contiguous() and grad.is_contiguous())
            or not (grad.is_cpu if on_cpu else grad.device == device)
            or param.is_neg()
            or grad.is_neg()
            or grad._is_zerotensor()
        ):
            return None
        at = grad.data_ptr()
        if at % width:
            return None
        own = owns[place]
        held: list[Any] = []
        for name, part, part_at, part_shape in parts:
            now = own.get(name)
            if now is None or now is not part():
                return None
            if now.data_ptr() != part_at or now.shape != part_shape:
                return None
            held.append(now)
        v, s = held if len(held) == 2 else buffers_of(own)
        found.append((param, grad, v, s, ordinal))
        read += at, param.numel() * width
    return Tensors.of(found)


def _ids_of(groups: list[dict[str, Any]]) -> list[list[int]]:
    return [list(map(id, group["params"])) for group in groups]


class Call(NamedTuple):
    """What the kernels are to do with parameters of one group and one age."""

    buckets: list[kernels.Bucket]
    numbers: kernels.Coefficients
    group: dict[str, Any]

    def limited(self, scale: Number) -> Call:
        """The call in a step that is scaled down; see `limit.step_limit`."""
        c = self.numbers
        return self._replace(
            numbers=c._replace(step_size=c.step_size * scale, shrink=c.shrink * scale)
        )


def calls_of(
    groups: list[dict[str, Any]],
    moves: Moves,
    window: rule.Window,
    rates: list[Number],
    share_of: Callable[[Any], Number],
    noise: Number,
) -> list[Call]:
    """The calls of a step that nothing limits, with the window after it.

    `share_of` takes an age, and gives the share of the zeros after the step; `noise` is the number
    of the step.
    """
    calls = []
    for group, own, lr in zip(groups, moves, rates, strict=True):
        rounds = group["stochastic_rounding"]
        rounding = rounds or group["state_dtype"] == "bfloat16", rounds
        preferences = group["foreach"], group["fused"]
        for age, _, buckets in own:
            five = rule.coefficients(group, window, lr, share_of(age))
            c = kernels.Coefficients(*five, noise, *rounding, *preferences)
            calls.append(Call(buckets, c, group))
    return calls


def predicted(
    calls: Iterable[Call], weight_of: Callable[[Tensor], float], *on_device: Any
) -> Number:
    """What the calls of this rank would take off the loss; see `limit.step_limit`.

    `weight_of` says how much a parameter counts here. `on_device` is nothing on the host, else the
    last two arguments of `kernels.squared_norms`.
    """
    totals: dict[Any, Number] = {}  # by device: each is read once
    for buckets, c, group in calls:
        for norms, ordinals in kernels.squared_norms(buckets, c, *on_device):
            weights = [weight_of(group["params"][n]) for n in ordinals]
            if isinstance(norms, Tensor) and len(set(weights)) == 1:
                norm = weights[0] * norms.sum()  # one launch
            else:
                norm = sum(weight * each for weight, each in zip(weights, norms, strict=True))
            home = norms.device if isinstance(norms, Tensor) else None
            decrease = limit.predicted_decrease(c.step_size, c.momentum, norm)
            totals[home] = totals.get(home, 0.0) + decrease
    return sum(totals.values() if on_device else map(float, totals.values()), 0.0)
