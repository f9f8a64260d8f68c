"""What one step of one parameter group needs, the same for every kernel."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

Tensors = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
"""Parameters, gradients, momentum buffers and mean squares; one index is one parameter."""


class Coefficients(NamedTuple):
    """What is left of a group's settings and of the window once a step is decided.

    Attributes:
        step_size: α, negative when the objective is maximized.
        decay: (ω − 1)/ω, what is kept of the mean squared gradient.
        momentum: μ = γω/δ, the effective momentum.
        eps: ε, added to the root.
        shrink: α·λ, the share of the parameter that decoupled weight decay takes away.
    """

    step_size: float
    decay: float
    momentum: float
    eps: float
    shrink: float

    @property
    def is_divisible(self) -> bool:
        """Whether (1 − μ)/α exists, which the fused kernel's weight decay slot needs."""
        return self.step_size != 0 and math.isfinite((1 - self.momentum) / self.step_size)
