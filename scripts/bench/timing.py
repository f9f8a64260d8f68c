"""Times steps in pairs, within limits of time and of memory."""

from __future__ import annotations

import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], Any]
GIB = 2**30


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
    if len(values) < 2:
        return {"median": values[0], "quartiles": [values[0], values[0]]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
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
    """Makes each step three times; the milliseconds of one round of them.

    Raises:
        TooSlow: when `seconds` are over.
    """
    with time_limit(seconds):
        return [sum(milliseconds(step, device) for step in steps) for _ in range(3)][-1]


# ---- memory ----


class Bandwidth:
    """What a device's memory gives to two plain operations on 256 MiB.

    `copy_` also reads its target on most processors before it is overwritten, which nobody counts;
    `add_`, like an optimizer, writes where it has read.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.source = torch.ones(64 * 2**20, device=device)
        self.target = torch.zeros_like(self.source)

    def measured(self) -> dict[str, float]:
        """Gigabytes per second, read and written, in the median of seven operations of each."""
        size = self.source.nbytes
        return {
            "copy": self._rate(lambda: self.target.copy_(self.source), 2 * size),
            "add": self._rate(lambda: self.target.add_(self.source), 3 * size),
        }

    def _rate(self, step: Step, size: int) -> float:
        times = [milliseconds(step, self.device) for _ in range(9)][2:]
        return size / statistics.median(times) / 1e6


def free_memory(device: str) -> float:
    """The bytes that a program can still get on a device."""
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    bounds = [float("inf")]
    information = Path("/proc/meminfo")
    if information.exists():
        found = re.search(r"MemAvailable:\s+(\d+) kB", information.read_text())
        bounds += [1024.0 * int(found[1])] if found else []
    for limit, usage in _CONTAINER:
        try:
            total, used = (
                float(Path("/sys/fs/cgroup", name).read_text()) for name in (limit, usage)
            )
            bounds.append(total - used)
        except (OSError, ValueError):
            pass  # none of this kind, or without a limit
    return min(bounds)


_CONTAINER = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""The files of a container's own limit and use, of the second and the first version."""


def why_too_large(needed: float, device: str, most: float | None) -> str | None:
    """Says so, if there is not that much memory and a tenth to spare.

    Args:
        needed: bytes.
        most: bytes that may be used at all; None is what is free.
    """
    free = min(free_memory(device), float("inf") if most is None else most)
    if 1.1 * needed <= free:
        return None
    return f"needs {1.1 * needed / GIB:.1f} GiB of memory, {free / GIB:.1f} GiB free"
