"""Whether ranks agree: on their set-up, at the first step, and bit by bit, for loops that ask."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from . import arguments, kernels
from ._version import __version__
from .checkpoint import COMMON
from .progress import PROGRESS
from .ranks import gathered, home_of, size
from .state import is_flat_piece, local_part
from .wrappers import dwmgrad_in, innermost, is_partitioned

__all__ = ["assert_ranks_agree"]

_SETUP_BYTES = 8192


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
    partitioned = is_partitioned(optimizer)
    optimizer = innermost(optimizer)
    if dwmgrad_in(optimizer) is None:
        raise TypeError(f"assert_ranks_agree takes a DWMGrad, got {type(optimizer).__name__}")
    group = optimizer.loss_group
    if size(group) < 2:
        return
    optimizer._read_device()
    device = home_of(optimizer.param_groups)
    names, *numbers = zip(*_facts(optimizer.param_groups, partitioned), strict=True)
    lengths = gathered([len(names)], device, group)
    if len({row[0] for row in lengths}) > 1:
        raise RuntimeError(f"ranks disagree on the number of parameters: {lengths}")
    rows = gathered(numbers, device, group)
    found = []
    for place, name in enumerate(names):
        first_of: dict[int, int] = {}  # shard: the first rank that holds it
        for rank, (shards, values) in enumerate(rows):
            first = first_of.setdefault(shards[place], rank)
            if rows[first][1][place] != values[place]:
                found.append(f"{name} (ranks {first} and {rank})")
                break
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise RuntimeError(f"ranks disagree on {', '.join(found[:5])}{more}")


def _facts(groups: list[dict[str, Any]], partitioned: bool) -> list[tuple[str, int, int]]:
    """The name of each thing that ranks must agree on, which shard of it this is, and its value."""
    facts = [("the number of parameter groups", 0, len(groups))]
    labels: list[tuple[str, int]] = []
    sums: list[Tensor] = []
    for index, settings in enumerate(groups):
        facts += [(f"{key} of group {index}", 0, _bits_of(settings[key])) for key in PROGRESS]
        names = settings.get("param_names", range(len(settings["params"])))
        for name, param in zip(names, settings["params"], strict=True):
            # FSDP1 and ZeRO have pieces of uneven length
            if not (partitioned or is_flat_piece(param)):
                labels.append((f"parameter {name} of group {index}", _shard_of(param)))
                sums.append(_checksum(param))
    if sums:  # one transfer from an accelerator, not one per parameter
        values = torch.stack([each.to(sums[0].device) for each in sums]).tolist()
        facts += [(*label, value) for label, value in zip(labels, values, strict=True)]
    return facts


def _bits_of(number: float | None) -> int:
    """A window's number as 64 bits; None is a NaN, which no number of a window is."""
    return struct.unpack("<q", struct.pack("<d", math.nan if number is None else number))[0]


def _shard_of(param: Any) -> int:
    """Which piece of a DTensor this rank holds: equal on ranks that hold the same piece."""
    if not hasattr(param, "placements"):
        return 0
    mesh, piece = param.device_mesh, 0
    places = zip(mesh.shape, mesh.get_coordinate(), param.placements, strict=True)
    for count, place, placement in places:
        piece = piece * count + (0 if placement.is_replicate() else place)
    return piece


def _checksum(param: Tensor) -> Tensor:
    """The sum of the bits, so that one different element is always seen."""
    local = local_part(param)
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return local.detach().view(kinds[local.element_size()]).sum(dtype=torch.int64)


# ---- the set-up ----


def check_setup(optimizer: Any, ignored: Iterable[str]) -> None:
    """Raises RuntimeError on every rank if versions, kernels, settings or windows differ.

    Ranks that differ in these drift apart with each step. One collective. The settings `ignored`
    may differ.
    """
    groups = optimizer.param_groups
    setup = _setup_of(groups, ignored)
    if groups[0]["loss_limit"] is not None and optimizer._pieces is None:
        # of the parameters that a rank holds whole, as copies of those of the others
        every = (param for group in groups for param in group["params"])
        copies = [p for p in every if not (hasattr(p, "placements") or is_flat_piece(p))]
        elements = sum(p.numel() for p in copies)
        setup["what loss_limit predicts from"] = f"{len(copies)} tensors of {elements:,} elements"
    own = {name: str(value)[:80] for name, value in setup.items()}
    text = json.dumps(own).encode().ljust(_SETUP_BYTES)
    rows = gathered(list(text), home_of(groups), optimizer.loss_group, torch.uint8)
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
            "kernel: a wheel that holds it on all of them, or DWMGRAD_NATIVE=0 on all. With "
            "loss_limit (auto, capped) each rank needs all parameters, or a shard of each"
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
