"""`python -m dwmgrad` for the processes that its script starts, and what they tell it.

This folder goes first on PYTHONPATH, so that every Python process below runs the `sitecustomize.py`
in it, which waits for transformers or Accelerate and imports dwmgrad then.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any

from ..optimizer import DWMGrad
from ..patching import tell_after

FOLDER = os.path.dirname(os.path.abspath(__file__))
MARK = "DWMGRAD_CREATED"
"""The environment variable with the path of a file. The first DWMGrad to be created removes it."""

_asks: int | None = None
"""The process that wants to know whether a DWMGrad was created."""


def inherit() -> None:
    """Lets the Python processes that this one starts know the name, and tell of a DWMGrad."""
    global _asks
    others = os.environ.get("PYTHONPATH", "")
    if FOLDER not in others.split(os.pathsep) and os.pathsep not in FOLDER:
        os.environ["PYTHONPATH"] = FOLDER + (os.pathsep + others if others else "")
    if MARK not in os.environ:  # else the process that started this one asks
        with contextlib.suppress(OSError):  # no place for a file: nothing will be told
            handle, os.environ[MARK] = tempfile.mkstemp(prefix="dwmgrad-")
            os.close(handle)
            _asks = os.getpid()
            watch()


def watch() -> None:
    """Removes the file when this process creates its first DWMGrad."""

    def note(*_: Any, **__: Any) -> None:
        unwrap()
        _remove_mark()

    unwrap = tell_after(DWMGrad, "__init__", note)


def none_was_created() -> bool:
    """Whether this process asks, and neither it nor one below it has created a DWMGrad."""
    return os.getpid() == _asks and _remove_mark()


def _remove_mark() -> bool:
    with contextlib.suppress(OSError, KeyError):
        os.unlink(os.environ[MARK])
        return True
    return False
