"""DWMGrad, a momentum optimizer whose memory follows the training loss (arXiv 2510.25042)."""

import os
import sys
from importlib.util import find_spec

from . import integrations as _integrations
from ._version import __version__
from .optimizer import DWMGrad

__all__ = ["DWMGrad", "__version__", "register", "unregister"]


def register() -> None:
    """Makes `--optim dwmgrad` work in Hugging Face's Trainer and HfArgumentParser.

    `import dwmgrad` does so by itself, as soon as transformers' training arguments are imported:
    this is for what was taken back by `unregister`, and to be told if a library is missing. A
    second call does nothing.

    Raises:
        ImportError: if transformers or accelerate is not installed.
    """
    for needed in ("transformers", "accelerate"):
        if needed not in sys.modules and find_spec(needed) is None:
            raise ImportError(
                f"--optim dwmgrad needs {needed}: pip install transformers accelerate", name=needed
            )
    _integrations.connect()
    from .integrations.transformers import register

    register()


def unregister() -> None:
    """Takes the name back: names, parser and Trainer are as they were without dwmgrad."""
    _integrations.disconnect("transformers")
    from .integrations.transformers import unregister

    unregister()


_integrations.connect()
if "DWMGRAD_CREATED" in os.environ:  # below a `python -m dwmgrad`, which is told of a DWMGrad
    from . import startup as _startup

    _startup.watch()
