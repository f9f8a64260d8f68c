"""`--optim dwmgrad`: the name, known to transformers as if it were built in."""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from .. import integrations
from ..optimizer import DWMGrad
from . import callback
from .optim_args import parse_optim_args

NAME = "dwmgrad"
MEMBER = "DWMGRAD"
_replaced: list[tuple[Callable[..., Any], Callable[..., Any]]] = []
"""The Trainer's own function and ours, while registered."""


def register() -> None:
    """Makes `TrainingArguments(optim="dwmgrad")` and `--optim dwmgrad` work.

    Call it before `HfArgumentParser` is built: a parser takes its choices from the names that exist
    then. A second call does nothing.

    Raises:
        ImportError: if transformers is not installed.
    """
    integrations.connect()
    callback.attach()
    if MEMBER in OptimizerNames.__members__:
        return
    _add_member()
    # A pickled member could not be loaded where dwmgrad is not imported (training_args.bin); as a
    # plain str it can, and is still equal to the member.
    copyreg.pickle(OptimizerNames, _reduce)  # type: ignore[arg-type]
    original = Trainer.get_optimizer_cls_and_kwargs
    choose = _with_dwmgrad(original)
    Trainer.get_optimizer_cls_and_kwargs = staticmethod(choose)  # type: ignore[method-assign]
    _replaced.append((original, choose))


def unregister() -> None:
    """Takes `register` back: names, parser and Trainer are as they were without dwmgrad."""
    callback.detach()
    if MEMBER not in OptimizerNames.__members__:
        return
    member = OptimizerNames.__members__[MEMBER]
    OptimizerNames._member_names_.remove(MEMBER)
    del OptimizerNames._member_map_[MEMBER]
    del OptimizerNames._value2member_map_[NAME]
    if MEMBER in vars(OptimizerNames):
        type.__delattr__(OptimizerNames, MEMBER)
    copyreg.dispatch_table.pop(type(member), None)
    original, choose = _replaced.pop()
    if Trainer.get_optimizer_cls_and_kwargs is choose:  # else another library has wrapped it, too
        Trainer.get_optimizer_cls_and_kwargs = staticmethod(original)  # type: ignore[method-assign]


def _add_member() -> None:
    member: Any = str.__new__(OptimizerNames, NAME)
    member._name_ = MEMBER
    member._value_ = NAME
    member._sort_order_ = len(OptimizerNames._member_names_)
    member.__objclass__ = OptimizerNames
    OptimizerNames._member_names_.append(MEMBER)
    OptimizerNames._member_map_[MEMBER] = member
    OptimizerNames._value2member_map_[NAME] = member
    type.__setattr__(OptimizerNames, MEMBER, member)


def _reduce(member: OptimizerNames) -> tuple[Any, ...]:
    return (str, (NAME,)) if member.value == NAME else (OptimizerNames, (member.value,))


def _with_dwmgrad(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_optimizer_cls_and_kwargs(
        args: TrainingArguments, model: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        if args.optim != NAME:
            return original(args, model)
        return DWMGrad, {
            "lr": args.learning_rate,
            "eps": args.adam_epsilon,
            **parse_optim_args(args.optim_args),
        }

    return get_optimizer_cls_and_kwargs
