"""What one step of one parameter group needs, the same for every kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Blockwise(NamedTuple):
    """A buffer in 8 bits: one code per element and one scale per `low_bit.BLOCK` of them."""

    codes: Tensor  # of the parameter's shape, contiguous; int8 for v, uint8 for s
    scales: Tensor  # float32, one per block of the flattened codes; the last block may be short


Buffer = Tensor | Blockwise


def storage_of(buffer: Buffer) -> torch.dtype:
    """A buffer's dtype; int8 stands for `Blockwise`."""
    return buffer.dtype if isinstance(buffer, Tensor) else torch.int8


def parts_of(buffer: Buffer) -> tuple[Tensor, ...]:
    """The tensors that a buffer is made of."""
    return tuple(buffer) if isinstance(buffer, Blockwise) else (buffer,)


Row = tuple[Tensor, Tensor, Any, Any, int]
"""One parameter of `Tensors`: θ, g, v, s and its ordinal."""


class Tensors(NamedTuple):
    """Five lists of equal length: one index is one parameter. All but g change in place."""

    params: list[Tensor]  # θ, of any shape
    grads: list[Tensor]  # g, of the parameters' shapes
    momentum_buffers: list[Any]  # v, each a `Buffer`, in any precision
    square_avgs: list[Any]  # s, each in the precision of its v
    ordinals: list[int]  # the parameters' numbers in their group: two round with different noise

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Tensors:
        """The columns of rows, of which there is at least one."""
        return cls(*map(list, zip(*rows, strict=True)))

    def addresses(self, piece: int) -> tuple[list[int], int]:
        """What a kernel in another language reads of the tensors, and the number of pieces in all.

        For each parameter the addresses of θ, v, s and of the scales of v and s (0 without), its
        number of elements, the pieces of the parameters before it, and its ordinal. A `piece` is
        so many elements of one tensor, which are worked on at once.
        """
        table: list[int] = []
        pieces = v_scales = s_scales = 0
        for p, _, v, s, n in zip(*self, strict=True):
            if isinstance(v, Blockwise):
                v_scales, s_scales = v.scales.data_ptr(), s.scales.data_ptr()
                v, s = v.codes, s.codes
            size = p.numel()
            table += p.data_ptr(), v.data_ptr(), s.data_ptr(), v_scales, s_scales, size, pieces, n
            pieces += -(-size // piece)
        return table, pieces


class Coefficients(NamedTuple):
    """What is left of a group's settings and of the window once a step is decided.

    The numbers are Python's or, with `capturable`, 0-dim tensors on the device.
    """

    step_size: Any  # α, negative when the objective is maximized
    decay: Any  # (ω − 1)/ω, what is kept of the mean squared gradient
    momentum: Any  # μ = γω/δ, the effective momentum
    eps: Any  # ε, added to the root
    shrink: Any  # α·λ, the share of the parameter that decoupled weight decay takes away
    noise: Any = 0  # the number of the step, which seeds stochastic rounding
    stochastic_state: bool = False  # whether bfloat16 buffers are rounded so; 8-bit ones always are
    stochastic_params: bool = False  # whether bfloat16 parameters are
    use_foreach: bool | None = None  # True prefers that kernel, False excludes it; None: as is best
    use_fused: bool | None = None  # the same; `native` and `one_launch` count as fused

    @property
    def may_fuse(self) -> bool:
        """Whether the preferences allow the kernels that count as fused."""
        return self.use_fused is not False and not self.use_foreach
