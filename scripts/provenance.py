"""Where and with what numbers were made: the machine, and the versions of libraries."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What a run's seconds depend on."""
    import torch

    return {
        "processor": processor(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """Its name; on Linux `platform` has none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(*names: str) -> dict[str, str]:
    """Of Python, of dwmgrad, and of those libraries among `names` that are installed."""
    from dwmgrad import __version__

    found = {"python": platform.python_version(), "dwmgrad": __version__}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
