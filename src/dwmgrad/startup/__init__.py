"""`python -m dwmgrad` for the processes that its script starts, and what they tell it.

This folder goes first on PYTHONPATH, so that every Python process below runs the `sitecustomize.py`
in it, which waits for transformers or Accelerate and imports dwmgrad then.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import tempfile
from typing import Any

from ..optimizer import DWMGrad

FOLDER = os.path.dirname(os.path.abspath(__file__))
MARK = "DWMGRAD_CREATED"
"""The environment variable with the path of a file; a child that creates a DWMGrad makes it."""

_asks: int | None = None
"""The process that wants to know whether a DWMGrad was created."""
_created = False


def inherit() -> None:
    """Lets the Python processes that this one starts know the name, and tell of a DWMGrad."""
    global _asks
    others = os.environ.get("PYTHONPATH", "")
    if FOLDER not in others.split(os.pathsep) and os.pathsep not in FOLDER:
        os.environ["PYTHONPATH"] = FOLDER + (os.pathsep + others if others else "")
    if MARK not in os.environ:  # else the process that started this one asks
        os.environ[MARK] = os.path.join(tempfile.gettempdir(), f"dwmgrad-{secrets.token_hex(8)}")
        _asks = os.getpid()
        watch()


def watch() -> None:
    """Remembers the first DWMGrad of this process, in a file if another process asks."""
    init = DWMGrad.__init__

    @functools.wraps(init)
    def first_init(self: DWMGrad, *args: Any, **kwargs: Any) -> None:
        global _created
        init(self, *args, **kwargs)
        if vars(DWMGrad)["__init__"] is first_init:
            DWMGrad.__init__ = init  # type: ignore[method-assign]
        if os.getpid() == _asks:
            _created = True
            return
        with contextlib.suppress(OSError, KeyError):
            open(os.environ[MARK], "a").close()

    DWMGrad.__init__ = first_init  # type: ignore[method-assign]


def none_was_created() -> bool:
    """Whether this process asks, and neither it nor one below it has created a DWMGrad.

    To be called once, at the end.
    """
    if os.getpid() != _asks:
        return False
    try:
        os.unlink(os.environ.pop(MARK))
    except (OSError, KeyError):
        return not _created
    return False
