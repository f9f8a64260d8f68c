"""What ranks must share: the mean loss, so that the window is one number, and proof that it is."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .checkpoint import PROGRESS


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


def mean_over_ranks(
    loss: Tensor | float | None,
    device: torch.device,
    group: Any = None,
) -> float | None:
    """The mean of one loss over the ranks of a group, the same on each of them.

    One 4-byte all-reduce, which every rank must join; none with one process.

    Args:
        loss: a tensor with one element, a number, or None on a rank to which no loss was given.
        device: where the all-reduce runs, unless the process group needs another one.
        group: the process group; None is the default one.

    Returns:
        NaN if any rank's loss is not finite; else None if any rank has no loss; else the mean, in
        float32 precision (that of the loss with one process).
    """
    if _size(group) < 2:
        return None if loss is None else _finite_or_nan(float(loss))
    total = _marked(loss, torch.float32, _device(device, group))
    dist.all_reduce(total, group=group)
    mean = float(total) / _size(group)
    return None if mean == -math.inf else _finite_or_nan(mean)


def mean_on_device(
    loss: Tensor | float | None,
    device: torch.device,
    group: Any = None,
    found_inf: Tensor | None = None,
) -> Tensor:
    """As `mean_over_ranks`, but it stays on the device, and nobody waits for it.

    Args:
        found_inf: above 0 where a gradient scaler gives the step up, on any rank: as if the loss
            were not finite.

    Returns:
        A 0-dim tensor, in float64 where the device has it. Minus infinity stands for None, and
        what is not finite may also be infinity.
    """
    alone = _size(group) < 2
    if alone:
        total = _marked(loss, widest(device), device)
    else:
        total = _marked(loss, torch.float32, _device(device, group))
    if found_inf is not None:
        total = torch.where(found_inf.to(total.device) > 0, torch.nan, total)
    if alone:
        return total
    dist.all_reduce(total, group=group)
    return total.to(device, widest(device)) / _size(group)


def widest(device: torch.device) -> torch.dtype:
    """Float64, which holds every whole number up to 2**53, on devices that have it."""
    return torch.float32 if device.type in ("mps", "xpu") else torch.float64


def _marked(loss: Tensor | float | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The loss on the device, in memory of its own: NaN if it is not finite.

    Minus infinity stands for None, as it survives every sum but one with NaN.
    """
    if loss is None:
        return torch.full((), -math.inf, dtype=dtype, device=device)
    if isinstance(loss, Tensor) and (loss.device == device or loss.device.type != "cpu"):
        total = loss.detach().to(device, dtype).reshape(())
    else:  # by value: a copy from the host's memory would make the host wait
        total = torch.full((), float(loss), dtype=dtype, device=device)
    return torch.where(total.isfinite(), total, torch.nan)


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
    if _size(group) < 2:
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


def _size(group: Any) -> int:
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group)


def _device(device: torch.device, group: Any) -> torch.device:
    """Where this group's collectives run; off-loaded parameters, on the CPU, know nothing of it."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _gather(row: list[int], device: torch.device, group: Any) -> list[list[int]]:
    own = torch.tensor(row, dtype=torch.int64, device=_device(device, group))
    rows = [torch.empty_like(own) for _ in range(_size(group))]
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
