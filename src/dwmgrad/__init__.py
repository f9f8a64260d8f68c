"""DWMGrad, a momentum optimizer whose memory follows the training loss (arXiv 2510.25042)."""

import os

from ._version import __version__
from .groups import param_groups
from .integrations import connect as _connect
from .integrations import register, unregister
from .optimizer import DWMGrad

__all__ = ["DWMGrad", "__version__", "param_groups", "register", "unregister"]

_connect()
if "DWMGRAD_CREATED" in os.environ:  # below a `python -m dwmgrad` that asks for a DWMGrad
    from . import startup as _startup

    _startup.watch()
