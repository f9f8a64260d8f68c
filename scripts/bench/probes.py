"""Counts what a step does besides its arithmetic: memory, kernel launches, waiting, compiling."""

from __future__ import annotations

import os
import re
import sys
import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from bench.timing import Step, synchronize

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its starts and stops


def state_bytes(optimizer: Any) -> int:
    """The bytes of all tensors in the optimizer's state, each counted once.

    Single numbers, such as Adam's count of steps, are left out.
    """
    found = {
        (part.device, part.data_ptr()): part.nbytes
        for own in optimizer.state.values()
        for value in own.values()
        if isinstance(value, Tensor) and value.dim() > 0
        for part in _parts(value)
    }
    return sum(found.values())


def _parts(value: Any) -> list[Tensor]:
    """The tensors that a tensor is made of: torchao's 8-bit ones have several."""
    if not is_traceable_wrapper_subclass(value):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(value, name))]


def extra_memory(step: Step, device: str) -> int | None:
    """The most bytes that a step holds besides what was there before it.

    On the CPU it sees what PyTorch allocates, not what a library takes from the system by itself;
    None where this torch does not report it.
    """
    if device != "cpu":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    try:
        events = record.profiler.kineto_results.events()  # type: ignore[union-attr]
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    except AttributeError:
        return None
    held = most = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        held += change
        most = max(most, held)
    return most


# ---- what CUDA sees ----

_LAUNCH = re.compile(r"(cuda|cu|hip)(Module|Ext|ExtModule)?Launch(Cooperative)?Kernel")
_SYNC = "called a synchronizing CUDA operation"


def launches(step: Step, device: str) -> int | None:
    """The number of kernels that a step launches; None without CUDA."""
    if not device.startswith("cuda"):
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        step()
        synchronize(device)
    return sum(each.count for each in record.key_averages() if is_launch(each.key))


def is_launch(name: str) -> bool:
    """Whether the profiler's event of this name is the launch of a kernel."""
    return _LAUNCH.match(name) is not None


def syncs(step: Step, device: str) -> int | None:
    """How often a step waits for the device, as far as torch sees it; None without CUDA."""
    if not device.startswith("cuda"):
        return None
    synchronize(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum(_SYNC in str(each.message) for each in caught)


# ---- compiling ----

_specialized: list[Any] = []
with suppress(ImportError):  # no Triton, or an older one
    from triton import knobs

    knobs.runtime.jit_post_compile_hook = lambda *args, **kwargs: _specialized.append(kwargs)


def compilations() -> int:
    """The graphs that torch.compile has made and the kernels that Triton has specialized so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    graphs = dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
    return graphs + len(_specialized)
