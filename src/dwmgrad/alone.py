"""Steps that a rank makes without the others: in `no_sync()`, or in a `Join` for uneven inputs."""

from __future__ import annotations

import weakref
from typing import Any

from torch.distributed.algorithms.join import Join, JoinHook
from torch.nn.parallel import DistributedDataParallel

from .patching import tell_before

replicas: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models whose gradients DistributedDataParallel averages, as far as this is known of them."""
_joins: set[Join] = set()
"""The contexts for uneven inputs that are entered; other threads may enter and leave some."""


def watch() -> None:
    """Lets the functions below know of what is entered from now on; harmless to repeat."""
    tell_before(DistributedDataParallel, "no_sync", replicas.add)
    tell_before(Join, "__enter__", _joins.add)
    tell_before(Join, "__exit__", _joins.discard)


def is_local(optimizer: Any) -> bool:
    """Whether the optimizer's model is within `no_sync()`: each rank keeps its own gradients."""
    unsynced = [model for model in replicas if not model.require_backward_grad_sync]
    if not unsynced:
        return False
    own = {id(param) for group in optimizer.param_groups for param in group["params"]}
    return any(id(param) in own for model in unsynced for param in model.parameters())


class Shadow(JoinHook):
    """Makes a rank without inputs take part in the steps of those that have some."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def main_hook(self) -> None:
        self._optimizer._shadow_step()


def joined_without(optimizer: Any) -> bool:
    """Whether a context for uneven inputs is entered that does not know of this optimizer.

    A collective inside of it waits for ever.
    """
    return any(join._enable and not _knows(join, optimizer) for join in tuple(_joins))


def joined_behind_others(optimizer: Any) -> bool:
    """Whether a context for uneven inputs is entered that knows of it, and first of a model."""
    known = (join for join in tuple(_joins) if join._enable and _knows(join, optimizer))
    return any(join._joinables[0] is not optimizer for join in known)


def _knows(join: Join, optimizer: Any) -> bool:
    return any(each is optimizer for each in join._joinables)
