"""What ranks must share: the loss, so that the window is one number, and one set-up."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.join import Join, JoinHook
from torch.nn.parallel import DistributedDataParallel

from . import arguments, kernels
from ._version import __version__
from .checkpoint import COMMON


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


def size(group: Any) -> int:
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
    """What all ranks make of a step."""

    loss: float | None  # NaN if one is not finite; else None if one lacks; else the ranks' mean
    micro_batches: float  # the mean number over the ranks, whole where they are alike
    idle: bool = False  # whether no rank has a loss or a gradient
    overflow: bool = False  # whether a gradient scaler of any rank gives the step up
    lacks_gradient: bool = False  # whether a rank has no gradient
    makes_state: bool = False  # this is no step: it creates the state, on this rank perhaps alone
    stands_out: bool = False  # whether the optimizer's guard refuses the loss

    @property
    def is_refused(self) -> bool:
        """Whether the step is skipped because a loss is not finite."""
        return self.loss is not None and math.isnan(self.loss)

    @property
    def is_known_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.idle


class AgreedOnDevice(NamedTuple):
    """The same in 0-dim tensors on the device, in float64 where it has it.

    Attributes:
        loss: finite: the mean. Minus infinity: there is none. NaN: the step is skipped, as a loss
            is not finite. Infinity: there is nothing to do, or a gradient scaler gives it up.
        micro_batches: as in `Agreed`.
        overflow: above 0 where a gradient scaler of any rank gives the step up.
    """

    loss: Tensor
    micro_batches: Tensor
    overflow: Tensor

    @property
    def is_refused(self) -> bool:
        """Never: the device knows, and nobody waits for it."""
        return False

    @property
    def stands_out(self) -> bool:
        """Never, for the same reason."""
        return False

    @property
    def is_known_idle(self) -> bool:
        """Never, for the same reason."""
        return False


def agree(
    share: Share | None, device: torch.device, group: Any = None, alone: bool = False
) -> Agreed:
    """What the ranks of a group make of one step, the same on each of them.

    One small all-reduce, which every rank must join; none with one process.

    Args:
        share: what this rank brings; None where it has no more steps to make, as others have.
        device: where the all-reduce runs, unless the process group needs another one.
        group: the process group; None is the default one.
        alone: whether this rank steps by itself, whatever the group.
    """
    if share is not None and (alone or size(group) < 2):
        loss = None if share.loss is None else _finite_or_nan(float(share.loss))
        idle = share.loss is None and not share.has_gradient
        return Agreed(loss, share.micro_batches, idle, bool(share.overflow > 0))
    total, ranks, losses, micro_batches, gradients, overflows = _sum(share, device, group).tolist()
    mean: float | None = _finite_or_nan(total / ranks)
    if losses < ranks and not math.isnan(total):
        mean = None
    count = micro_batches / ranks
    return Agreed(
        mean,
        int(count) if count.is_integer() else count,
        idle=losses + gradients == 0,
        overflow=overflows > 0,
        lacks_gradient=gradients < ranks,
    )


def agree_on_device(
    share: Share | None, device: torch.device, group: Any = None, alone: bool = False
) -> AgreedOnDevice:
    """As `agree`, but it stays on the device, and nobody waits for it."""
    if share is not None and (alone or size(group) < 2):
        numbers = _numbers(share, device)
    else:
        numbers = _sum(share, device, group).to(device, widest(device))
    total, ranks, losses, micro_batches, gradients, overflows = numbers.unbind()
    mean = total / ranks
    mean = torch.where(mean.isfinite(), mean, torch.nan)
    mean = torch.where((losses < ranks) & ~mean.isnan(), -torch.inf, mean)
    idle = (losses + gradients == 0) | (overflows > 0)
    return AgreedOnDevice(torch.where(idle, torch.inf, mean), micro_batches / ranks, overflows)


def widest(device: torch.device) -> torch.dtype:
    """Float64, which holds every whole number up to 2**53, on devices that have it."""
    return torch.float32 if device.type in ("mps", "xpu") else torch.float64


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
    """What this rank's part of a parameter counts in a sum over ranks: its copies count once."""
    ranks = size(group)
    if getattr(param, "_fsdp_flattened", False):  # FSDP1: each rank has a piece
        return 1.0
    if not hasattr(param, "placements"):
        return 1 / ranks
    sizes = zip(param.device_mesh.shape, param.placements, strict=True)
    return math.prod(count for count, place in sizes if not place.is_replicate()) / ranks


def _sum(share: Share | None, device: torch.device, group: Any) -> Tensor:
    numbers = _numbers(share, device_of(device, group))
    with _explained():
        dist.all_reduce(numbers, group=group)
    return numbers


def _numbers(share: Share | None, device: torch.device) -> Tensor:
    """Loss, ranks, ranks with a loss, micro-batches, ranks with a gradient, overflows."""
    dtype = widest(device)
    if share is None:
        return torch.zeros(6, dtype=dtype, device=device)

    def number(value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor) and (value.device == device or value.device.type != "cpu"):
            return value.detach().to(device, dtype).reshape(())
        # by value: a copy from the host's memory would make the host wait
        value = float(value)
        fits = abs(value) <= torch.finfo(dtype).max  # not the infinities, nor NaN
        return torch.full((), value if fits else math.nan, dtype=dtype, device=device)

    loss = number(0.0 if share.loss is None else share.loss)
    counts = (1.0, share.loss is not None, share.micro_batches, share.has_gradient, share.overflow)
    return torch.stack([torch.where(loss.isfinite(), loss, torch.nan), *map(number, counts)])


def _finite_or_nan(value: float) -> float:
    return value if math.isfinite(value) else math.nan


# ---- the set-up ----

_SETUP_BYTES = 8192


def check_setup(optimizer: Any, group: Any, ignored: Iterable[str] = ()) -> None:
    """Raises RuntimeError on every rank if versions, kernels, settings or windows differ.

    Ranks that differ in these drift apart with each step. One collective.

    Args:
        optimizer: the DWMGrad.
        group: the process group; None is the default one.
        ignored: settings that may differ.
    """
    groups = optimizer.param_groups
    own = {name: str(value)[:80] for name, value in _setup_of(groups, ignored).items()}
    text = json.dumps(own).encode().ljust(_SETUP_BYTES)
    rows = gathered(list(text), home_of(groups), group, torch.uint8)
    setups = [json.loads(bytes(each)) for each in rows]
    found = []
    for name in setups[0]:
        ranks: dict[str, list[str]] = {}
        for rank, setup in enumerate(setups):
            if name in setup:
                ranks.setdefault(setup[name], []).append(str(rank))
        values = [f"{value} on rank {', '.join(at)}" for value, at in ranks.items()]
        if len(values) > 1:
            found.append(f"{name} is {' and '.join(values)}")
    if found:
        raise RuntimeError(
            f"ranks are not set up alike, and would drift apart: {'; '.join(found)}. Give all "
            "ranks one version of dwmgrad, one set of arguments and one checkpoint, and the same "
            "kernel: a wheel that holds it on all of them, or DWMGRAD_NATIVE=0 on all"
        )


def _setup_of(groups: list[dict[str, Any]], ignored: Iterable[str]) -> dict[str, Any]:
    own: dict[str, Any] = {"the version of dwmgrad": __version__}
    param = next((param for group in groups for param in group["params"]), None)
    if param is not None and not all(g["fused"] is False or g["foreach"] for g in groups):
        probe = torch.empty(0, dtype=param.dtype, device=param.device)
        compiled = kernels.by_address(probe, probe) is not None
        own["the kernel"] = "the compiled one" if compiled else "PyTorch's operators"
    own |= {name: groups[0][name] for name in COMMON if name not in ignored}
    for name in arguments.SETTINGS:
        if name in ("lr", *arguments.SHARED):  # schedules may differ
            continue
        values = [group[name] for group in groups]
        # in a pipeline, ranks have groups of their own: then only what all groups share
        own[name if len(values) == 1 else f"{name} of {len(values)} groups"] = (
            values[0] if values.count(values[0]) == len(values) else repr(values)
        )
    return own


# ---- steps of one rank alone ----

replicas: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models whose gradients DistributedDataParallel averages, as far as this is known of them."""


def watch() -> None:
    """Lets `is_local` and `joined` know of what is entered from now on; harmless to repeat."""
    _before(DistributedDataParallel, "no_sync", replicas.add)
    _before(Join, "__enter__", _joins.append)
    _before(Join, "__exit__", _left)


def _before(kind: type, method: str, tell: Callable[[Any], Any]) -> None:
    original = getattr(kind, method)
    if hasattr(original, "tells_dwmgrad"):
        return

    @functools.wraps(original)
    def telling(self: Any, *args: Any) -> Any:
        tell(self)
        return original(self, *args)

    telling.tells_dwmgrad = True  # type: ignore[attr-defined]
    setattr(kind, method, telling)


def is_local(optimizer: Any) -> bool:
    """Whether the optimizer's model is within `no_sync()`: each rank keeps its own gradients."""
    unsynced = [model for model in replicas if not model.require_backward_grad_sync]
    if not unsynced:
        return False
    own = {id(param) for group in optimizer.param_groups for param in group["params"]}
    return any(id(param) in own for model in unsynced for param in model.parameters())


# ---- torch.distributed.algorithms.join ----

_joins: list[Join] = []
"""The contexts for uneven inputs that are entered."""


class Shadow(JoinHook):
    """Makes a rank without inputs take part in the steps of those that have some."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def main_hook(self) -> None:
        self._optimizer._shadow_step()


def _left(join: Join) -> None:
    _joins[:] = [each for each in _joins if each is not join]


def joined_without(optimizer: Any) -> bool:
    """Whether a context for uneven inputs is entered that does not know of this optimizer.

    A collective inside of it waits for ever.
    """
    return any(join._enable and not _knows(join, optimizer) for join in _joins)


def joined_behind_others(optimizer: Any) -> bool:
    """Whether a context for uneven inputs is entered that knows of it, and first of a model."""
    known = (join for join in _joins if join._enable and _knows(join, optimizer))
    return any(join._joinables[0] is not optimizer for join in known)


def _knows(join: Join, optimizer: Any) -> bool:
    return any(each is optimizer for each in join._joinables)
