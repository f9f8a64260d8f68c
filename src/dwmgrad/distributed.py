"""What ranks must share: the loss, so that the window is one number, and proof that it is."""

from __future__ import annotations

import functools
import json
import math
import struct
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.join import Join, JoinHook
from torch.nn.parallel import DistributedDataParallel

from ._version import __version__
from .checkpoint import COMMON, PROGRESS
from .kernels import native, one_launch


def group_of(loss_group: Any) -> Any:
    """`loss_group=` as a process group; None is the default group.

    Raises:
        TypeError: if it is neither a process group nor a device mesh.
        ValueError: if the mesh has more than one dimension, or this rank is not in the group.
    """
    if loss_group is None:
        return None
    group = loss_group
    if hasattr(group, "get_group"):  # a DeviceMesh
        if group.ndim != 1:
            raise ValueError(
                f"loss_group must be one dimension of a device mesh, got {group.ndim} dimensions: "
                'pass mesh["dp"], say'
            )
        group = group.get_group()
    members = getattr(dist, "GroupMember", None)
    if members is not None and group is members.NON_GROUP_MEMBER:
        raise ValueError("loss_group: this rank is not in the group; pass one that it belongs to")
    if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"loss_group must be a process group, a one-dimensional device mesh or None, "
            f"got {loss_group!r}"
        )
    return group


class Share(NamedTuple):
    """What one rank brings to a step.

    Attributes:
        loss: a tensor with one element, a number, or None on a rank to which no loss was given.
        micro_batches: from how many the loss came.
        has_gradient: whether a parameter has one.
        overflow: above 0 where a gradient scaler found a gradient that is not finite.
    """

    loss: Tensor | float | None = None
    micro_batches: int = 0
    has_gradient: bool = True
    overflow: Tensor | float = 0.0


class Agreed(NamedTuple):
    """What all ranks make of a step.

    Attributes:
        loss: NaN if any rank's loss is not finite; else None if any rank has no loss; else the
            mean over the ranks.
        micro_batches: the mean number over the ranks, whole where they are alike.
        idle: whether no rank has a loss or a gradient.
        overflow: whether a gradient scaler of any rank gives the step up.
        lacks_gradient: whether a rank has no gradient.
        makes_state: whether this is no step: it creates the state, which the other ranks may not.
    """

    loss: float | None
    micro_batches: float
    idle: bool = False
    overflow: bool = False
    lacks_gradient: bool = False
    makes_state: bool = False

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


def _sum(share: Share | None, device: torch.device, group: Any) -> Tensor:
    numbers = _numbers(share, device_of(device, group))
    try:
        dist.all_reduce(numbers, group=group)
    except RuntimeError as error:
        raise RuntimeError(_FAILED.format(error)) from error
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
    return torch.stack(
        [
            torch.where(loss.isfinite(), loss, torch.nan),
            *map(number, (1.0, float(share.loss is not None), float(share.micro_batches))),
            number(float(share.has_gradient)),
            number(share.overflow),
        ]
    )


def check_setup(optimizer: Any, group: Any, ignored: Iterable[str] = ()) -> None:
    """Raises unless all ranks have the same version, kernel, settings and window. One collective.

    Ranks that differ in these go apart a little further with each step.

    Args:
        optimizer: the DWMGrad.
        group: the process group; None is the default one.
        ignored: settings that may differ.

    Raises:
        RuntimeError: on every rank; names what differs, the values and the ranks.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    own: dict[str, Any] = {"the version of dwmgrad": __version__}
    own |= _kernel(params, optimizer.param_groups)
    first = optimizer.param_groups[0]
    own |= {name: first[name] for name in COMMON if name not in ignored}
    for name in _OF_GROUPS:
        values = [group[name] for group in optimizer.param_groups]
        # in a pipeline, ranks have groups of their own: then only what all groups share
        own[name if len(values) == 1 else f"{name} of {len(values)} groups"] = (
            values[0] if values.count(values[0]) == len(values) else repr(values)
        )
    text = json.dumps({name: str(value)[:80] for name, value in own.items()}).encode()
    device = device_of(params[0].device if params else torch.device("cpu"), group)
    mine = torch.zeros(_SETUP_BYTES, dtype=torch.uint8)
    mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    mine = mine.to(device)
    rows = [torch.empty_like(mine) for _ in range(size(group))]
    try:
        dist.all_gather(rows, mine, group=group)
    except RuntimeError as error:
        raise RuntimeError(_FAILED.format(error)) from error
    setups = [json.loads(bytes(row.tolist()).rstrip(b"\0")) for row in rows]
    found = []
    for name in setups[0]:
        ranks: dict[str, list[int]] = {}
        for rank, setup in enumerate(setups):
            if name in setup:
                ranks.setdefault(setup[name], []).append(rank)
        if len(ranks) > 1:
            held = " and ".join(
                f"{value} on rank{'s' * (len(at) > 1)} {', '.join(map(str, at))}"
                for value, at in ranks.items()
            )
            found.append(f"{name} is {held}")
    if found:
        raise RuntimeError(
            f"ranks are not set up alike, and would drift apart: {'; '.join(found)}. Give all "
            "ranks one version of dwmgrad, one set of arguments and one checkpoint, and the same "
            "kernel: gcc on all of them, or DWMGRAD_NATIVE=0 on all"
        )


_OF_GROUPS = (
    "momentum", "eps", "weight_decay", "maximize", "foreach", "fused", "state_dtype",
    "stochastic_rounding",
)  # fmt: skip
_SETUP_BYTES = 8192


def _kernel(params: list[Tensor], groups: list[dict[str, Any]]) -> dict[str, str]:
    """Which kernel runs here, as far as machines differ in it."""
    if not params or all(g["fused"] is False or g["foreach"] for g in groups):
        return {}
    probe = torch.empty(0, dtype=params[0].dtype, device=params[0].device)
    compiled = native.accepts(probe, probe) or one_launch.accepts(probe, probe)
    return {"the kernel": "the compiled one" if compiled else "PyTorch's operators"}


_FAILED = (
    "DWMGrad could not average its loss over the ranks: {}. Every rank must make the same steps in "
    "the same order. Look for a rank that failed or ended first; for uneven inputs, which need "
    "Join([model, optimizer]); for a step that some ranks skip; and for ranks that step by "
    "themselves, which need loss_group=torch.distributed.new_subgroups(group_size=1)[0]"
)


# ---- steps of one rank alone ----

replicas: weakref.WeakSet[Any] = weakref.WeakSet()
"""Models whose gradients DistributedDataParallel averages, as far as this is known of them."""


def watch_no_sync() -> None:
    """Lets `is_local` know of the models that enter `no_sync()` from now on."""
    no_sync = DistributedDataParallel.no_sync
    if hasattr(no_sync, "tells_dwmgrad"):
        return

    @functools.wraps(no_sync)
    def known_no_sync(self: DistributedDataParallel) -> Any:
        replicas.add(self)
        return no_sync(self)

    known_no_sync.tells_dwmgrad = True  # type: ignore[attr-defined]
    DistributedDataParallel.no_sync = known_no_sync  # type: ignore[method-assign]


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


def watch_joins() -> None:
    """Lets `joined_without` know of the contexts entered from now on; harmless to repeat.

    In such a context a collective outside of its knowledge waits for ever.
    """
    enter, leave = Join.__enter__, Join.__exit__
    if hasattr(enter, "__wrapped__"):
        return

    @functools.wraps(enter)
    def enter_and_tell(self: Join) -> Any:
        _joins.append(self)
        return enter(self)

    @functools.wraps(leave)
    def tell_and_leave(self: Join, *error: Any) -> Any:
        _joins[:] = [join for join in _joins if join is not self]
        return leave(self, *error)

    Join.__enter__, Join.__exit__ = enter_and_tell, tell_and_leave  # type: ignore[method-assign]


def joined_without(optimizer: Any) -> bool:
    """Whether a context for uneven inputs is entered that does not know of this optimizer."""
    return any(join._enable and not _knows(join, optimizer) for join in _joins)


def joined_behind_others(optimizer: Any) -> bool:
    """Whether a context for uneven inputs is entered that knows of it, and first of a model."""
    known = (join for join in _joins if join._enable and _knows(join, optimizer))
    return any(join._joinables[0] is not optimizer for join in known)


def _knows(join: Join, optimizer: Any) -> bool:
    return any(each is optimizer for each in join._joinables)


@torch.no_grad()
def assert_ranks_agree(optimizer: Any) -> None:
    """Raises unless all ranks have the same window and, bit by bit, the same parameters.

    It compares the window's numbers of every parameter group and one checksum per parameter, over
    the optimizer's `loss_group`. Ranks that hold different shards of a DTensor (FSDP2, tensor
    parallelism) are compared where they hold the same one. What DeepSpeed's ZeRO and FSDP1 cut
    into flat pieces is left out, and the windows alone are compared: pass the optimizer that
    `accelerator.prepare` returned, so that it is seen. Every rank must call it; with one process
    it does nothing. It reads every parameter once.

    Args:
        optimizer: a DWMGrad, or what Accelerate or DeepSpeed wrapped around it.

    Raises:
        RuntimeError: on every rank; names the numbers, the parameters and the ranks that differ.
    """
    from .wrappers import dwmgrad_in, layers

    wrappers, optimizer = layers(optimizer), layers(optimizer)[-1]
    if dwmgrad_in(optimizer) is None:
        raise TypeError(f"assert_ranks_agree takes a DWMGrad, got {type(optimizer).__name__}")
    partitioned = any(type(each).__module__.startswith("deepspeed") for each in wrappers)
    group = optimizer.loss_group
    if size(group) < 2:
        return
    optimizer._read_device()
    names, values = ["the number of parameter groups"], [len(optimizer.param_groups)]
    sums: list[Tensor] = []
    for index, settings in enumerate(optimizer.param_groups):
        for key in PROGRESS:
            names.append(f"{key} of group {index}")
            values.append(_bits_of(settings[key]))
    shards = [0] * len(values)
    for index, settings in enumerate(optimizer.param_groups if not partitioned else []):
        labels = settings.get("param_names", range(len(settings["params"])))
        for label, param in zip(labels, settings["params"], strict=True):
            if getattr(param, "_fsdp_flattened", False):  # FSDP1: pieces of uneven length
                continue
            names.append(f"parameter {label} of group {index}")
            shards.append(_shard_of(param))
            sums.append(_checksum(param))
    if sums:  # one transfer from an accelerator, not one per parameter
        values += torch.stack([each.to(sums[0].device) for each in sums]).tolist()
    device = next(
        (p.device for g in optimizer.param_groups for p in g["params"]), torch.device("cpu")
    )
    lengths = _gather([len(values)], device, group)
    if len({row[0] for row in lengths}) > 1:
        raise RuntimeError(f"ranks disagree on the number of parameters: {lengths}")
    rows = list(zip(_gather(shards, device, group), _gather(values, device, group), strict=True))
    found = []
    for place, name in enumerate(names):
        seen: dict[int, int] = {}  # shard: the first rank that holds it
        for rank, (shard, value) in enumerate(rows):
            first = seen.setdefault(shard[place], rank)
            if rows[first][1][place] != value[place]:
                found.append(f"{name} (ranks {first} and {rank})")
                break
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise RuntimeError(f"ranks disagree on {', '.join(found[:5])}{more}")


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


def _gather(row: list[int], device: torch.device, group: Any) -> list[list[int]]:
    own = torch.tensor(row, dtype=torch.int64, device=device_of(device, group))
    rows = [torch.empty_like(own) for _ in range(size(group))]
    dist.all_gather(rows, own, group=group)
    return [each.tolist() for each in rows]


def _bits_of(number: float | None) -> int:
    """A window's number as 64 bits; None is a NaN, which no number of a window is."""
    return struct.unpack("<q", struct.pack("<d", math.nan if number is None else number))[0]


def _shard_of(param: Any) -> int:
    """Which piece of a DTensor this rank holds: equal on ranks that hold the same piece."""
    if not hasattr(param, "placements"):
        return 0
    mesh, piece = param.device_mesh, 0
    for size, place, placement in zip(
        mesh.shape, mesh.get_coordinate(), param.placements, strict=True
    ):
        piece = piece * size + (0 if placement.is_replicate() else place)
    return piece


def _checksum(param: Tensor) -> Tensor:
    """The sum of the bits, so that one different element is always seen."""
    local = param.to_local() if hasattr(param, "to_local") else param
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return local.detach().view(kinds[local.element_size()]).sum(dtype=torch.int64)


def _finite_or_nan(value: float) -> float:
    return value if math.isfinite(value) else math.nan
