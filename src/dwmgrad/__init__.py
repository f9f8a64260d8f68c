"""DWMGrad, a momentum optimizer whose memory follows the training loss (arXiv 2510.25042)."""

from ._version import __version__
from .integrations import connect as _connect
from .optimizer import DWMGrad

__all__ = ["DWMGrad", "__version__", "register", "unregister"]


def register() -> None:
    """Makes `--optim dwmgrad` work in Hugging Face's Trainer and HfArgumentParser.

    Call it before the parser is built. A second call does nothing.

    Raises:
        ImportError: if transformers is not installed.
    """
    try:
        from .integrations.transformers import register
    except ModuleNotFoundError as error:
        if error.name not in ("transformers", "accelerate"):
            raise
        raise ImportError(
            f"--optim dwmgrad needs {error.name}: pip install transformers accelerate"
        ) from error

    register()


def unregister() -> None:
    """Takes `register` back: names, parser and Trainer are as they were without dwmgrad."""
    from .integrations.transformers import unregister

    unregister()


_connect()
