"""What the benchmarks write: the machine and the versions, a Markdown table, and JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "dwmgrad triton bitsandbytes torchao torch-optimi schedulefree transformers".split()

# ---- where and with what ----


def record(device: str, **settings: Any) -> dict[str, Any]:
    """The head of a result file; rows are to be added.

    Args:
        device: the device that is timed.
        settings: the settings that the rows have in common.
    """
    about = {"machine": machine(device), "versions": versions(), "commit": commit()}
    return {**about, "settings": settings, "rows": []}


def machine(device: str) -> dict[str, Any]:
    """The processor, its cores and memory, the operating system and the GPU."""
    return {
        "device": device,
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "system": platform.platform(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _line(file: str, key: str) -> str | None:
    with suppress(OSError):
        found = re.search(rf"^{key}\s*:\s*(.*)$", Path(file).read_text(), re.M)
        return found[1] if found else None
    return None


def versions() -> dict[str, str | None]:
    """The versions of Python and of all libraries that take part; None is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    found["torch"] = torch.__version__  # with the build
    for name in PACKAGES:
        found[name] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> dict[str, Any]:
    """The checkout's commit, and whether src/ or scripts/ differ from it; None outside of git."""
    try:
        head = _git("rev-parse", "HEAD")
        return {"id": head, "changed": bool(_git("status", "--porcelain", "src", "scripts"))}
    except (OSError, subprocess.CalledProcessError):
        return {"id": None, "changed": None}


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def title(results: dict[str, Any]) -> str:
    """Where and with what, in a line."""
    found = results["machine"]
    name = found["gpu"] or f"{found['processor']}, {found['threads']} thread(s)"
    return f"{name}, torch {results['versions']['torch']}"


def write(path: Path | None, results: dict[str, Any]) -> None:
    """Writes a result file, whole or not at all; called after each row."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(results, indent=2) + "\n")
    scratch.replace(path)


# ---- the table ----


def print_header(columns: str) -> None:
    """Prints the first two lines of a Markdown table; `columns` are separated by " | "."""
    print(f"| {columns} |\n|{'---|' * (columns.count(' | ') + 1)}", flush=True)


def print_row(columns: str, labels: list[str], cells: list[str] | str) -> None:
    """Prints one line of a Markdown table: its labels, then cells or why there are none."""
    if isinstance(cells, str):
        cells = [cells, *["-"] * (columns.count(" | ") - len(labels))]
    print(f"| {' | '.join(cell.replace('|', '/') for cell in [*labels, *cells])} |", flush=True)


def with_quartiles(values: dict[str, Any], factor: float = 1) -> str:
    """A median with its quartiles, in three digits."""
    low, high = values["quartiles"]
    return f"{factor * values['median']:.3g} ({factor * low:.3g} to {factor * high:.3g})"
