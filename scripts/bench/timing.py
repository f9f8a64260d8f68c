"""Times steps in pairs, within limits of time and memory, and counts what else a step does."""

from __future__ import annotations

import os
import re
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its starts and stops

Step = Callable[[], Any]
GIB = 2**30
QUARTILES = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
_CONTAINER = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""The files of a container's own limit and use, of the second and the first version."""


def synchronize(device: str) -> None:
    """Waits for the device, so that a step's time is its own."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def milliseconds(step: Step, device: str) -> float:
    """The time of one step."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def pairs(first: Step, second: Step, count: int, device: str) -> tuple[list[float], list[float]]:
    """Makes both steps `count` times, in alternating order; their milliseconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(count):
        for which in (0, 1) if pair % 2 else (1, 0):
            times[which].append(milliseconds((first, second)[which], device))
    return times


def spread(values: list[float]) -> dict[str, Any]:
    """The median and the quartiles."""
    low, median, high = torch.tensor(values, dtype=torch.float64).quantile(QUARTILES).tolist()
    return {"median": median, "quartiles": [low, high]}


class TooSlow(BaseException):
    """A time limit has passed; not an Exception, so that no library takes it for its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooSlow inside the block when the time is over (on Windows it never does)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def warm_up(steps: list[Step], device: str, seconds: float) -> float:
    """Makes each step 3 times; the milliseconds of one round. TooSlow when `seconds` are over."""
    with time_limit(seconds):
        return [sum(milliseconds(step, device) for step in steps) for _ in range(3)][-1]


# ---- memory ----


def bandwidth(device: str) -> dict[str, float]:
    """Gigabytes per second that memory gives to plain operations on 256 MiB, each seven times.

    `copy_` also reads its target on most processors before it is overwritten, which nobody counts;
    `add_`, like an optimizer, writes where it has read; `dot` only reads.
    """
    source = torch.ones(64 * 2**20, device=device)
    target = torch.zeros_like(source)

    def rate(step: Step, accesses: int) -> float:
        times = [milliseconds(step, device) for _ in range(9)][2:]
        return accesses * source.nbytes / statistics.median(times) / 1e6

    return {
        "copy": rate(lambda: target.copy_(source), 2),
        "add": rate(lambda: target.add_(source), 3),
        "read": rate(lambda: target.dot(source), 2),
    }


def free_memory(device: str) -> float:
    """The bytes that a program can still get on a device."""
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    bounds = [inf]
    with suppress(OSError):
        found = re.findall(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        bounds += [1024.0 * int(size) for size in found]
    for files in _CONTAINER:
        with suppress(OSError, ValueError):  # none of this kind, or without a limit
            limit, used = (float(Path("/sys/fs/cgroup", name).read_text()) for name in files)
            bounds.append(limit - used)
    return min(bounds)


def why_too_large(needed: float, device: str, most: float | None) -> str | None:
    """Says so, if `needed` bytes and a tenth are not free, or are more than `most` GiB."""
    free = min(free_memory(device), inf if most is None else most * GIB)
    if 1.1 * needed <= free:
        return None
    return f"needs {1.1 * needed / GIB:.1f} GiB of memory, {free / GIB:.1f} GiB free"


# ---- what a step does besides its arithmetic: memory, launches, waiting, compiling ----


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

LAUNCH = re.compile(r"(cuda|cu|hip)(Module|Ext|ExtModule)?Launch(Cooperative)?Kernel")
"""The profiler's events of these names are launches of kernels."""
_SYNC = "called a synchronizing CUDA operation"


def launches(step: Step, device: str) -> int | None:
    """The number of kernels that a step launches; None without CUDA."""
    if not device.startswith("cuda"):
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        step()
        synchronize(device)
    return sum(each.count for each in record.key_averages() if LAUNCH.match(each.key))


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
