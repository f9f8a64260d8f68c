"""What one step of one parameter group needs, the same for every kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Blockwise(NamedTuple):
    """A buffer in 8 bits: one code per element and one scale per `narrow.BLOCK` of them.

    Attributes:
        codes: of the parameter's shape, contiguous; int8 for v, uint8 for s.
        scales: float32, one per block of the flattened codes; the last block may be short.
    """

    codes: Tensor
    scales: Tensor


Buffer = Tensor | Blockwise


Row = tuple[Tensor, Tensor, Any, Any, int]
"""One parameter of `Tensors`: θ, g, v, s and its ordinal."""


class Tensors(NamedTuple):
    """Five lists of equal length: one index is one parameter.

    Attributes:
        params: θ, of any shape; changed in place.
        grads: g, of the parameters' shapes; read only.
        momentum_buffers: v, each a `Buffer`, in any precision; changed in place.
        square_avgs: s, each in the precision of its v; changed in place.
        ordinals: the parameters' numbers in their group: two of them round with different noise.
    """

    params: list[Tensor]
    grads: list[Tensor]
    momentum_buffers: list[Any]
    square_avgs: list[Any]
    ordinals: list[int]

    @classmethod
    def empty(cls) -> Tensors:
        """No parameters yet."""
        return cls([], [], [], [], [])

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Tensors:
        """The columns of rows, each a parameter's five."""
        return cls(*map(list, zip(*rows, strict=True))) if rows else cls.empty()

    def add(self, param: Tensor, grad: Tensor, v: Buffer, s: Buffer, ordinal: int) -> None:
        """Appends one parameter."""
        self.params.append(param)
        self.grads.append(grad)
        self.momentum_buffers.append(v)
        self.square_avgs.append(s)
        self.ordinals.append(ordinal)


class Coefficients(NamedTuple):
    """What is left of a group's settings and of the window once a step is decided.

    Attributes:
        step_size: α, negative when the objective is maximized.
        decay: (ω − 1)/ω, what is kept of the mean squared gradient.
        momentum: μ = γω/δ, the effective momentum.
        eps: ε, added to the root.
        shrink: α·λ, the share of the parameter that decoupled weight decay takes away.
        noise: the number of the step, from which stochastic rounding takes its random bits.
        dither_state: whether bfloat16 buffers are rounded stochastically; 8-bit ones always are.
        dither_params: whether bfloat16 parameters are.
    """

    step_size: float
    decay: float
    momentum: float
    eps: float
    shrink: float
    noise: int = 0
    dither_state: bool = False
    dither_params: bool = False

    @property
    def is_divisible(self) -> bool:
        """Whether (1 − μ)/α exists, which the fused kernel's weight decay slot needs."""
        return self.step_size != 0 and math.isfinite((1 - self.momentum) / self.step_size)
