"""The losses of Lightning and Fabric: every backward pass of theirs is a strategy's.

The Trainer's own, `manual_backward(loss)` and `fabric.backward(loss)` all end there. The loss is
unscaled, and divided by the number of batches that are accumulated. The step limit is told of the
clipping to a norm.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch.nn.utils import clip_grad_norm_

from ..gradient_trace import may_be_elsewhere
from ..losses import LIGHTNING, brought
from ..optimizer import DWMGrad
from ..patching import tell_after, wrap
from ..wrappers import innermost, inside, is_partitioned
from ..zero import show_pieces


def attach(host: ModuleType) -> None:
    """Wraps `Strategy.backward`, of which each package has one, and what clips in that package."""
    wrap(host.Strategy, "backward", _with_loss)
    if hasattr(host.Strategy, "clip_gradients_norm"):  # Fabric
        tell_after(host.Strategy, "clip_gradients_norm", _tell_clipping)
    else:
        wrap(host.Precision, "clip_grad_by_norm", _keeping_the_norm)


def _with_loss(backward: Any, self: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
    optimizers, alone = _concerned(self)
    if not optimizers:
        return backward(self, loss, *args, **kwargs)
    # after the optimizer, or the module, come the arguments of Tensor.backward()
    gradient = kwargs.get("gradient", args[1] if len(args) > 1 else None)
    show_pieces(filter(is_partitioned, getattr(self, "optimizers", None) or ()))
    with brought(optimizers, loss, LIGHTNING, gradient=gradient, alone=alone):
        return backward(self, loss, *args, **kwargs)


def _concerned(strategy: Any) -> tuple[list[DWMGrad], bool]:
    """The optimizers that a backward pass may concern, and whether it can be no other's."""
    given = getattr(strategy, "optimizers", None)
    if not given:  # Fabric's strategies do not know them
        return list(DWMGrad.live), False
    ours = inside(given)
    alone = len({id(innermost(each)) for each in given}) == 1 and bool(ours)
    return ours, alone and (is_partitioned(given[0]) or may_be_elsewhere(ours[0].param_groups))


def _tell_clipping(
    _: Any, norm: Any, module: Any, optimizer: Any, max_norm: Any, *args: Any, **kwargs: Any
) -> None:
    for each in inside([optimizer]):
        each.observe_clipping(norm, max_norm)


def _keeping_the_norm(
    clip: Any, self: Any, optimizer: Any, clip_val: Any, *args: Any, **kwargs: Any
) -> Any:
    ours = inside([optimizer])  # or Lightning's wrapper, which hands on what it is told
    if not ours:
        return clip(self, optimizer, clip_val, *args, **kwargs)
    # Lightning's own does this, and drops the norm
    norm = clip_grad_norm_(self.main_params(optimizer), clip_val)
    ours[0].observe_clipping(norm, clip_val)
