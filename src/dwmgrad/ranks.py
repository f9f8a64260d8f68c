"""What ranks share: the loss, so that the window is one number, and other sums over them."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from .patching import tell_before
from .scalars import Number, placed, where, widest
from .state import is_flat_piece


def group_of(loss_group: Any) -> Any:
    """`loss_group=` as a process group; None is the default group.

    Raises:
        TypeError: if it is neither a process group nor a device mesh.
        ValueError: if the mesh has more than one dimension, or this rank is not in the group.
    """
    group = loss_group
    if hasattr(group, "get_group"):  # a DeviceMesh
        if group.ndim != 1:
            raise ValueError(
                f"loss_group must be one dimension of a device mesh, got {group.ndim} dimensions: "
                'pass mesh["dp"], say'
            )
        group = group.get_group()
    if group is None:
        return None
    if dist.is_available():
        if group is dist.GroupMember.NON_GROUP_MEMBER:
            raise ValueError(
                "loss_group: this rank is not in the group; pass one that it belongs to"
            )
        if isinstance(group, dist.ProcessGroup):
            return group
    raise TypeError(
        f"loss_group must be a process group, a one-dimensional device mesh or None, "
        f"got {loss_group!r}"
    )


def size(group: Any = None) -> int:
    """The number of ranks in a process group; 1 without one."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


def device_of(device: torch.device, group: Any) -> torch.device:
    """Where this group's collectives run; off-loaded parameters, on the CPU, know nothing of it."""
    if size(group) > 1 and dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def home_of(groups: list[dict[str, Any]]) -> torch.device:
    """The device of the first parameter."""
    return next((p.device for group in groups for p in group["params"]), torch.device("cpu"))


def gathered(
    row: Sequence[Any], device: torch.device, group: Any, dtype: torch.dtype = torch.int64
) -> list[Any]:
    """Every rank's row of whole numbers, all of one shape, in the order of the ranks."""
    own = torch.tensor(row, dtype=dtype, device=device_of(device, group))
    rows = [torch.empty_like(own) for _ in range(size(group))]
    with _explained():
        dist.all_gather(rows, own, group=group)
    return [each.tolist() for each in rows]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"DWMGrad could not average its loss over the ranks: {error}. Every rank must make the "
            "same steps in the same order. Look for a rank that failed or ended first; for uneven "
            "inputs, which need Join([model, optimizer]); for a step that some ranks skip; and for "
            "ranks that step by themselves, which need "
            "loss_group=torch.distributed.new_subgroups(group_size=1)[0]"
        ) from error


# ---- a step ----


class Share(NamedTuple):
    """What one rank brings to a step."""

    loss: Tensor | float | None = None  # of one element; None where no loss was given
    micro_batches: int = 0  # from how many the loss came
    has_gradient: bool = True  # whether a parameter has one
    overflow: Tensor | float = 0.0  # above 0 where a gradient scaler found infinity or NaN


class Agreed(NamedTuple):
    """What all ranks make of a step: numbers, or with `capturable` 0-dim tensors on the device.

    The loss, on a device in float64 where it has it, alone says what becomes of the step. Finite:
    it is the mean. Minus infinity: there is none. NaN: the step is skipped, as a loss is not
    finite. Infinity: there is nothing to do, or on a device a gradient scaler gives it up.
    """

    loss: Number
    micro_batches: Number  # the mean number over the ranks, whole where they are alike
    overflow: Number = False  # whether a gradient scaler of any rank gives the step up
    lacks_gradient: Number = False  # whether a rank has no gradient
    makes_state: bool = False  # this is no step: it creates the state, on this rank perhaps alone

    @property
    def on_device(self) -> bool:
        """Whether the device knows, and nobody waits for it."""
        return isinstance(self.loss, Tensor)

    @property
    def happens(self) -> Number:
        """Whether there is a step."""
        return self.loss < math.inf

    @property
    def counts(self) -> Number:
        """Whether that step has a loss."""
        return abs(self.loss) < math.inf

    @property
    def is_refused(self) -> bool:
        """Whether the step is skipped because a loss is not finite; on a device not known."""
        return not self.on_device and math.isnan(self.loss)


def agree(
    share: Share | None,
    device: torch.device,
    group: Any = None,
    alone: bool = False,
    stays: bool = False,
) -> Agreed:
    """What the ranks of a group make of one step, the same on each of them.

    One small all-reduce, which every rank must join; none with one process.

    Args:
        share: what this rank brings; None where it has no more steps to make, as others have.
        device: where the all-reduce runs, unless the process group needs another one.
        group: the process group; None is the default one.
        alone: whether this rank steps by itself, whatever the group.
        stays: whether the answer stays on the device, so that the host does not wait for it.
    """
    numbers: Iterable[Any]
    if share is None or not (alone or size(group) < 2):
        sums = _on(device_of(device, group), share)
        with _explained():
            dist.all_reduce(sums, group=group)
        numbers = sums.to(device, widest(device)).unbind() if stays else sums.tolist()
    else:
        numbers = _on(device, share).unbind() if stays else map(float, _numbers_of(share))
    total, ranks, losses, micro_batches, gradients, overflows = numbers
    mean = total / ranks
    mean = where(abs(mean) < math.inf, mean, math.nan)
    mean = where((losses < ranks) & (mean == mean), -math.inf, mean)
    idle, overflow = losses + gradients == 0, overflows > 0
    count = micro_batches / ranks
    if stays:
        return Agreed(where(idle | overflow, math.inf, mean), count, overflow)
    count = int(count) if count == int(count) else count
    return Agreed(where(idle, math.inf, mean), count, overflow, gradients < ranks)


def total_of(number: Tensor | float | None, device: torch.device, group: Any = None) -> Tensor:
    """The sum over the ranks of a group, on the device, the same bits on each of them.

    One small all-reduce, which every rank must join.

    Args:
        number: of this rank, its parameters weighted by `weight_of`; None where it has no more
            steps to make. The others then stand for it, too.
        device, group: as in `agree`.
    """
    home = device_of(device, group)
    pair = torch.zeros(2, dtype=widest(device), device=home)
    if number is not None:
        pair[0], pair[1] = number, 1.0
    with _explained():
        dist.all_reduce(pair, group=group)
    total, active = pair.to(device).unbind()
    return total * (size(group) / active)


def weight_of(param: Any, group: Any = None) -> float:
    """What this rank's part of a parameter counts in a sum over ranks: its copies count once.

    Each rank of the group has the parameter, or a part of it: see `check_parts`.
    """
    ranks = size(group)
    if is_flat_piece(param):
        return 1.0
    if not hasattr(param, "placements"):
        return 1 / ranks
    sizes = zip(param.device_mesh.shape, param.placements, strict=True)
    return math.prod(count for count, place in sizes if not place.is_replicate()) / ranks


def check_parts(params: Iterable[Any], group: Any) -> None:
    """Raises RuntimeError if a group of ranks does not have all parts of a parameter.

    Their sum over the group would be another one on each of its ranks.
    """
    if group is None or size() < 2:
        return
    ours = set(dist.get_process_group_ranks(group))
    for param in params:
        for dim, place in enumerate(getattr(param, "placements", ())):
            mesh = param.device_mesh
            if not (place.is_replicate() or ours.issuperset(_ranks_along(mesh, dim))):
                raise RuntimeError(
                    f"loss_limit adds up the parts of the parameters over loss_group, ranks "
                    f"{sorted(ours)}, and a parameter has parts on ranks {_ranks_along(mesh, dim)}:"
                    " leave loss_group out, which averages the loss over all ranks"
                )


def _ranks_along(mesh: Any, dim: int) -> list[int]:
    return dist.get_process_group_ranks(mesh.get_group(dim))


def _numbers_of(share: Share) -> tuple[Tensor | float, ...]:
    """Loss, ranks, ranks with a loss, micro-batches, ranks with a gradient, overflows."""
    loss = 0.0 if share.loss is None else share.loss
    counts = (1.0, share.loss is not None, share.micro_batches, share.has_gradient)
    return (loss, *counts, share.overflow)


def _on(device: torch.device, share: Share | None) -> Tensor:
    """As `_numbers_of`, on a device; a loss that is not finite is NaN."""
    dtype = widest(device)
    if share is None:
        return torch.zeros(6, dtype=dtype, device=device)

    def number(value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor) and (value.device == device or value.device.type != "cpu"):
            return placed(value.detach(), dtype, device)
        value = float(value)
        fits = abs(value) <= torch.finfo(dtype).max  # not the infinities, nor NaN
        return placed(value if fits else math.nan, dtype, device)

    loss, *counts = map(number, _numbers_of(share))
    return torch.stack([torch.where(loss.isfinite(), loss, torch.nan), *counts])


# ---- steps that a rank makes by itself: in `no_sync()`, or in a `Join` for uneven inputs ----

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
