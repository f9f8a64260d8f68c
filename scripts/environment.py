"""Makes a virtual environment with this project in it, once; needs Python and nothing else."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def prepare(extra: str, folder: str = ".venv", constraints: Path | None = None) -> Path:
    """Installs `dwmgrad[extra]`, editable, into a virtual environment of this checkout.

    A second call is quick: a stamp in the environment says what was installed.

    Args:
        extra: the extra of setup.cfg to install.
        folder: the environment's folder, below the checkout.
        constraints: a pip constraints file; PIP_CONSTRAINT and pip's other settings hold as ever.

    Returns:
        The environment's Python. Ends the program with a message if it cannot be made.
    """
    if sys.version_info < (3, 10):  # noqa: UP036 - runs before anything is installed
        sys.exit(f"dwmgrad needs Python 3.10 or newer, this is {sys.version.split()[0]}")
    home = ROOT / folder
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = home / f"installed-{extra}"
    wanted = _fingerprint(constraints)
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return python
    say(f"making {home} (once; downloads PyTorch and the Hugging Face libraries)")
    _run([sys.executable, "-m", "venv", str(home)], "install Python's venv module")
    # what is never imported need not be compiled
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-compile"]
    if constraints is not None:
        pip += ["--constraint", str(constraints)]
    _run([*pip, "--editable", f"{ROOT}[{extra}]"], "see pip's message above, then run this again")
    stamp.write_text(wanted)
    return python


def run(command: list[str], folder: Path = ROOT) -> None:
    """Runs a command in a folder; ends the program with its exit code if it fails.

    Ctrl-C reaches the command by itself, SIGTERM by us; it ends in its own way and time.
    """
    # pip has compiled nothing: what the first process imports is kept for the others
    if code := _code_of(command, folder, PYTHONDONTWRITEBYTECODE=""):
        sys.exit(code)


def say(text: str) -> None:
    """One line of progress."""
    print(f"==> {text}", flush=True)


def _code_of(command: list[str], folder: Path, **environment: str) -> int:
    """A command's exit code, once it has ended; 130 after Ctrl-C."""
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment})
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code, interrupted = None, False
    while code is None:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            interrupted = True
    signal.signal(signal.SIGTERM, before)
    if interrupted:
        return 130
    return code if code >= 0 else 128 - code


def _fingerprint(constraints: Path | None) -> str:
    names = ("setup.cfg", "setup.py", "pyproject.toml", "src/dwmgrad/kernels/native.c")
    parts = [*(ROOT / name for name in names), *([constraints] if constraints else [])]
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts))
    return f"{sys.version} {ROOT} {digest.hexdigest()}"


def _run(command: list[str], remedy: str) -> None:
    code = _code_of(command, ROOT)
    if code in (130, 128 + signal.SIGTERM):  # somebody ended it
        sys.exit(code)
    if code:
        sys.exit(f"could not run {' '.join(command)}: {remedy}")
