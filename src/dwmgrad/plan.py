"""What a step moves, checked as a whole; the next step checks only what can have changed since."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from .cohorts import NewState, States, cohorts_of, names_of
from .kernels import Bucket, Overlaps, Row, Tensors, prepare
from .state import BUFFERS, SCALES, buffers_of

Age = Callable[[dict[str, Any]], Hashable]


class Move(NamedTuple):
    """A cohort (see `cohorts.Cohort`), ready for the kernels."""

    age: Any
    states: list[dict[str, Any]]
    buckets: list[Bucket]


Moves = list[list[Move]]
"""For each parameter group its cohorts."""


def moves_of(groups: list[dict[str, Any]], states: NewState, age: Age, overlaps: Overlaps) -> Moves:
    """Everything that a step of these groups moves; nothing has moved yet.

    State that is missing is made, and taken back if anything does not fit.

    Raises:
        RuntimeError: if tensors do not fit together; it names the parameter.
    """
    try:
        cohorts = [cohorts_of(group, states, age) for group in groups]
        sets = [cohort.rows for own in cohorts for cohort in own]
        buckets = iter(prepare(sets, overlaps, lambda at: names_of(groups, cohorts)[at]))
    except BaseException:
        states.undo()
        raise
    return [[Move(each.age, each.states, next(buckets)) for each in own] for own in cohorts]


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
