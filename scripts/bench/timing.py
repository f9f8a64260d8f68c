"""Times steps in pairs, within limits of time and of memory."""

from __future__ import annotations

import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], Any]
GIB = 2**30
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
    several = values if len(values) > 1 else 2 * values
    low, median, high = statistics.quantiles(several, n=4, method="inclusive")
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
