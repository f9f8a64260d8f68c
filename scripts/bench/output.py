"""What the benchmarks write: the machine and the versions, a Markdown table, JSON and pictures."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "torch", "dwmgrad", "triton", "bitsandbytes", "torchao", "torch-optimi", "schedulefree",
    "transformers",
)  # fmt: skip

# ---- where and with what ----


def record(device: str, **settings: Any) -> dict[str, Any]:
    """The head of a result file; rows are to be added.

    Args:
        device: the device that is timed.
        settings: the settings that the rows have in common.
    """
    return {
        "machine": machine(device),
        "versions": versions(),
        "commit": commit(),
        "settings": settings,
        "rows": [],
    }


def machine(device: str) -> dict[str, Any]:
    """The processor, its cores and memory, the operating system and the GPU."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": device,
        "gpu": gpu,
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": _line("/proc/meminfo", "MemTotal"),
        "system": platform.platform(),
        "load_at_start": load,
    }


def _line(file: str, key: str) -> str | None:
    path = Path(file)
    found = re.search(rf"^{key}\s*:\s*(.*)$", path.read_text(), re.M) if path.exists() else None
    return found[1] if found else None


def versions() -> dict[str, str | None]:
    """The versions of Python and of all libraries that take part; None is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {**found, "torch": torch.__version__}  # with the build


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


def write(path: Path | None, results: dict[str, Any]) -> None:
    """Writes a result file, whole or not at all; called after each row."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(json.dumps(results, indent=2) + "\n")
    scratch.replace(path)


# ---- the table ----

COLUMNS = (
    "shapes", "parameters", "tensors", "optimizer", "kernel", "state", "ms (quartiles)",
    "ratio to fused AdamW (quartiles)", "MB moved", "of copy_", "of add_", "launches", "syncs",
    "recompiled", "extra MiB", "state bytes/parameter",
)  # fmt: skip


def header(columns: tuple[str, ...] = COLUMNS) -> str:
    """The first two lines of a Markdown table."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def line(row: dict[str, Any]) -> str:
    """A row of bench_step.py in the table; one that could not run says why."""
    cells = [row["shapes"], f"{row['parameters']:,}", str(row["tensors"])]
    cells += [row["optimizer"], row["kernel"], row["state"]]
    if row["why_not"] is not None:
        cells += [row["why_not"], *["-"] * (len(COLUMNS) - len(cells) - 1)]
        return table_line(cells)
    extra = row["extra_memory"]
    cells += [
        with_quartiles(row["ms"]),
        with_quartiles(row["ratio"]),
        f"{row['bytes_moved'] / 1e6:,.1f}",
        *(f"{row[key]:.0%}" for key in ("share_of_copy", "share_of_add")),
        *("-" if row[key] is None else str(row[key]) for key in ("launches", "syncs")),
        str(row["recompilations"]),
        "-" if extra is None else f"{extra / 2**20:.2f}",
        f"{row['state_bytes_per_parameter']:.2f}",
    ]
    return table_line(cells)


def table_line(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def with_quartiles(values: dict[str, Any]) -> str:
    """A median with its quartiles, in three digits."""
    low, high = values["quartiles"]
    return f"{values['median']:.3g} ({low:.3g} to {high:.3g})"


# ---- the picture ----


def plot(path: Path, results: dict[str, Any]) -> None:
    """Draws the ratio of each row, with its quartiles, and a line at 1."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    rows = [row for row in results["rows"] if row["why_not"] is None]
    figure = Figure(figsize=(9, 1.4 + 0.3 * max(len(rows), 3)), layout="constrained")
    axis = figure.subplots()
    wide = max((row["ratio"]["median"] for row in rows), default=1) > 10
    origin = 1 if wide else 0  # a logarithmic axis has no 0
    for place, row in enumerate(rows):
        ratio, (low, high) = row["ratio"]["median"], row["ratio"]["quartiles"]
        color = "tab:blue" if row["optimizer"] == "DWMGrad" else "0.7"
        errors = [[ratio - low], [high - ratio]]
        axis.barh(
            place, ratio - origin, left=origin, color=color, xerr=errors, ecolor="0.3", capsize=2
        )
        end = (max(origin, high), place)
        style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
        axis.annotate(f"{ratio:.2f}", end, (4, 0), **style)
        if place and rows[place - 1]["shapes"] != row["shapes"]:
            axis.axhline(place - 0.5, color="0.8", linewidth=0.8)
    if wide:
        axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.margins(x=0.1)
    axis.axvline(1, color="tab:red", linewidth=1)
    axis.set_xlabel("time of a step / that of torch.optim.AdamW(fused=True); median and quartiles")
    axis.set_title(title(results), fontsize=10)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a picture, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _label(row: dict[str, Any]) -> str:
    kernel = "" if row["kernel"] == "own" else f", {row['kernel']}"
    return f"{row['shapes']}: {row['optimizer']}{kernel}, {row['state']} state"


def title(results: dict[str, Any]) -> str:
    """Where and with what, in a line."""
    found = results["machine"]
    name = found["gpu"] or f"{found['processor']}, {found['threads']} thread(s)"
    return f"{name}, torch {results['versions']['torch']}"
