"""DeepSpeed's ZeRO steps one piece of the parameters after the other; a `loss_limit` asks for all.

ZeRO has the gradients of all pieces before it steps the first. Those of the pieces that wait are
reduced, but neither unscaled nor clipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import ranks
from .wrappers import inside, layers

_ALL = ("clip_grad", "dp_process_group")
_IN_TURN = (*_ALL, "_global_grad_norm", "averaged_gradients", "loss_scale")
_SUPPORTED = {
    "DeepSpeedZeroOptimizer": _IN_TURN,
    "DeepSpeedZeroOptimizer_Stage3": (
        *_IN_TURN,
        "fp32_partitioned_groups_flat",
        "sub_group_to_group_id",
    ),
    "BF16_Optimizer": _ALL,  # ZeRO-1 with bf16 and float32 gradients: steps all pieces at once
}
"""DeepSpeed's optimizers that show the gradients, and the names by which they do."""
_HIDING = {
    "swap_optimizer": "off-load to NVMe",
    "backup_optimizer": "off-load of a part of the optimizer",
    "torch_autocast_gradscaler": "torch_autocast in float16",
}
"""What these have where they do not, and what that is."""


class Pieces:
    """This rank's pieces of the parameters.

    Args:
        zero: DeepSpeed's optimizer.
        optimizer: the DWMGrad inside of it.

    Attributes:
        groups: all parameter groups, also while ZeRO shows the DWMGrad one of them.

    Raises:
        RuntimeError: if the gradients are not to be seen in this form, or version, of DeepSpeed.
    """

    def __init__(self, zero: Any, optimizer: Any) -> None:
        self.groups: list[dict[str, Any]] = optimizer.param_groups
        self._zero = zero
        kind = type(zero).__name__
        hiding = [what for name, what in _HIDING.items() if getattr(zero, name, None)]
        lacking = [name for name in _SUPPORTED.get(kind, ()) if not hasattr(zero, name)]
        if kind not in _SUPPORTED:
            hiding = [kind]
        elif lacking:
            hiding = [f"a {kind} without {', '.join(lacking)}, as this version has it"]
        elif self.groups[0]["capturable"]:
            hiding = ["capturable=True"]
        elif ranks.size(zero.dp_process_group) != ranks.size(optimizer.loss_group):
            hiding = ["ranks that do not share one loss and one set of pieces"]
        if hiding:
            raise RuntimeError(
                f"loss_limit does not work under DeepSpeed with {hiding[0]}: use its ZeRO-1, 2 or "
                "3, DDP or FSDP2, or leave loss_limit out (in place of the preset auto, which sets "
                "it, use finetune)"
            )

    def clipping(self) -> tuple[Tensor | float, float]:
        """The norm of all gradients, and what it is clipped to, as `observe_clipping` takes them.

        Known once ZeRO steps.
        """
        zero = self._zero
        return (zero._global_grad_norm, zero.clip_grad) if zero.clip_grad > 0 else (0.0, math.inf)

    def waiting(
        self, shown: list[dict[str, Any]], clipped_to: float
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        """Each piece that is not shown, a view of it that has its gradient, and its group.

        The gradient is what ZeRO will step with: in the piece's precision, unscaled, and clipped.

        Args:
            shown: the groups, as ZeRO steps them now.
            clipped_to: the share that clipping leaves of the gradients.
        """
        ready = {id(param) for group in shown for param in group["params"]}
        for index, (piece, group) in enumerate(self._in_order()):
            if id(piece) in ready:
                continue
            parts = self._zero.averaged_gradients.get(index)
            if parts is None:  # off-loaded
                parts = [piece.grad]
            view = piece.detach()
            view.grad = torch.zeros_like(view)  # of ZeRO-1 and 2's last rank, the end is padding
            flat = torch.cat([part.reshape(-1) for part in parts])
            view.grad[: flat.numel()] = flat
            view.grad *= clipped_to / self._zero.loss_scale
            yield piece, view, group

    def _in_order(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """Pieces and their groups, as ZeRO numbers them."""
        group_of = getattr(self._zero, "sub_group_to_group_id", None)
        if group_of is None:  # not ZeRO-3
            return [(param, group) for group in self.groups for param in group["params"]]
        pieces = self._zero.fp32_partitioned_groups_flat
        return [(piece, self.groups[group_of[index]]) for index, piece in enumerate(pieces)]


def show_pieces(optimizers: Iterable[Any]) -> None:
    """Lets the DWMGrads that have a `loss_limit` know their pieces, before DeepSpeed's step.

    Args:
        optimizers: as the host has them, in DeepSpeed's wrappers.

    Raises:
        RuntimeError: as `Pieces`.
    """
    for outer in optimizers:
        for optimizer in inside([outer]):
            if optimizer.param_groups[0]["loss_limit"] is not None:
                optimizer._pieces = Pieces(layers(outer)[-2], optimizer)
