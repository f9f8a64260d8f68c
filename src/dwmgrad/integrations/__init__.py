"""One file per host library; each is attached as soon as its host is imported."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from . import accelerate, checkpoint, lightning, transformers
from .hooks import after_import, no_longer_after_import

_HOSTS = {
    "accelerate.accelerator": accelerate.attach,
    "torch.distributed.checkpoint.state_dict": checkpoint.attach,
    "transformers.training_args": transformers.add_names,
    "transformers.trainer": transformers.enter_trainer,
    "lightning.pytorch.strategies.strategy": lightning.attach,
    "lightning.fabric.strategies.strategy": lightning.attach,
    "pytorch_lightning.strategies.strategy": lightning.attach,
    "lightning_fabric.strategies.strategy": lightning.attach,
}
"""Module of a host: the function to call once it is imported."""


def connect() -> None:
    """Lets Accelerate and Lightning hand over the losses, and the Trainer know `--optim dwmgrad`.

    It imports no host, and may be called again.
    """
    for host, attach in _HOSTS.items():
        after_import(host, attach)


def register() -> None:
    """Makes `--optim dwmgrad` work in Hugging Face's Trainer and HfArgumentParser.

    `import dwmgrad` does so by itself. Call this after `unregister`, or to get an error if a
    library is missing. A second call does nothing.

    Raises:
        ImportError: if transformers or accelerate is not installed.
    """
    for needed in ("transformers", "accelerate"):
        if needed not in sys.modules and find_spec(needed) is None:
            raise ImportError(
                f"--optim dwmgrad needs {needed}: pip install transformers accelerate", name=needed
            )
    connect()


def unregister() -> None:
    """Takes the names back: names, parser and Trainer are as they were without dwmgrad."""
    no_longer_after_import("transformers")
    transformers.detach()
