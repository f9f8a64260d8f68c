"""MoMo-Adam, which needs the loss, for loops that only call `step()`."""

from __future__ import annotations

import warnings
from typing import Any

import momo
from torch import Tensor


class MomoAdam(momo.MomoAdam):
    """The package's own, whose `step()` takes the loss that was written into `loss` before."""

    loss: Tensor | None = None

    def step(self, closure: Any = None) -> Any:
        """One step with `self.loss`."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "More than one param group")
            return super().step(loss=self.loss)
