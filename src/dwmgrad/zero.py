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
from .wrappers import dwmgrad_in, layers

_ZERO = ("clip_grad", "dp_process_group", "_global_grad_norm", "averaged_gradients", "loss_scale")
_OF_STAGE_3 = ("fp32_partitioned_groups_flat", "sub_group_to_group_id")
_SUPPORTED = {
    "DeepSpeedZeroOptimizer": _ZERO,
    "DeepSpeedZeroOptimizer_Stage3": (*_ZERO, *_OF_STAGE_3),
    # ZeRO-1 with bf16 and float32 gradients: it steps all at once
    "BF16_Optimizer": ("clip_grad", "dp_process_group"),
}
"""DeepSpeed's optimizers, and the names by which they show the gradients of all pieces."""
_HIDING = {
    "swap_optimizer": "off-load to NVMe",
    "backup_optimizer": "off-load of a part of the optimizer",
    "torch_autocast_gradscaler": "torch_autocast in float16",
}
"""What they have where they do not show them."""


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
        lacking = [name for name in _SUPPORTED.get(kind, ()) if not hasattr(zero, name)]
        reasons = [what for name, what in _HIDING.items() if getattr(zero, name, None)]
        if kind not in _SUPPORTED:
            reasons = [kind]
        elif lacking:
            reasons = [f"a {kind} that has no {lacking[0]}, as this version"]
        elif self.groups[0]["capturable"]:
            reasons = ["capturable=True"]
        elif ranks.size(zero.dp_process_group) != ranks.size(optimizer.loss_group):
            reasons = ["ranks that do not share one loss and one set of pieces"]
        if reasons:
            raise RuntimeError(
                f"loss_limit does not work under DeepSpeed with {reasons[0]}: use ZeRO-1, 2 or 3 "
                "without that, DDP or FSDP2, or leave loss_limit out (in place of the presets "
                "auto and capped, which set it, use finetune)"
            )

    def clipping(self) -> tuple[Tensor | float, float]:
        """What `observe_clipping` takes; known once ZeRO steps."""
        zero = self._zero
        return (zero._global_grad_norm, zero.clip_grad) if zero.clip_grad > 0 else (0.0, math.inf)

    def waiting(
        self, shown: list[dict[str, Any]], clipped_to: float
    ) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        """Each piece that is not shown, a view of it that has its gradient, and its group.

        The gradient is what ZeRO will step with: in the piece's precision, unscaled, and clipped.

        Args:
            shown: the groups, as ZeRO steps them now.
            clipped_to: what clipping leaves of the gradients; all of them if it is not below 1.
        """
        zero, ready = self._zero, {id(param) for group in shown for param in group["params"]}
        if hasattr(zero, "sub_group_to_group_id"):  # ZeRO-3
            flats = enumerate(zero.fp32_partitioned_groups_flat)
            pieces = [(flat, self.groups[zero.sub_group_to_group_id[i]]) for i, flat in flats]
        else:
            pieces = [(param, group) for group in self.groups for param in group["params"]]
        for index, (piece, group) in enumerate(pieces):
            if id(piece) in ready:
                continue
            parts = zero.averaged_gradients.get(index)
            if parts is None:  # off-loaded
                parts = [piece.grad]
            view = piece.detach()
            view.grad = torch.zeros_like(view)  # of ZeRO-1 and 2's last rank, the end is padding
            flat = torch.cat([part.reshape(-1) for part in parts])
            view.grad[: flat.numel()] = flat
            view.grad *= min(max(0.0, clipped_to), 1.0) / zero.loss_scale
            yield piece, view, group


def show_pieces(optimizers: Iterable[Any]) -> None:
    """Lets the DWMGrads in DeepSpeed's wrappers that have a `loss_limit` know their pieces."""
    for outer in optimizers:
        optimizer = dwmgrad_in(outer)
        if optimizer is not None and optimizer.param_groups[0]["loss_limit"] is not None:
            optimizer._pieces = Pieces(layers(outer)[-2], optimizer)
