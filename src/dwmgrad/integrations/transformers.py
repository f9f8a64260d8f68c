"""`--optim dwmgrad` and its kin: the names, known to transformers as if it were built in."""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from .. import integrations
from ..optimizer import DWMGrad
from ..state import keep_in_float32
from . import callback
from .names import NAMES, preset_of
from .optim_args import parse_optim_args

_replaced: list[tuple[Callable[..., Any], Callable[..., Any]]] = []
"""The Trainer's own function and ours, while registered."""


def register() -> None:
    """Makes `TrainingArguments(optim="dwmgrad")`, `--optim dwmgrad_8bit` and so on work.

    Call it before `HfArgumentParser` is built: a parser takes its choices from the names that exist
    then. A second call does nothing.

    Raises:
        ImportError: if transformers is not installed.
    """
    integrations.connect()
    callback.attach()
    if _replaced:
        return
    for name in NAMES:
        _add_member(name)
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
    if not _replaced:
        return
    for name in NAMES:
        _remove_member(name)
    copyreg.dispatch_table.pop(OptimizerNames, None)
    original, choose = _replaced.pop()
    if Trainer.get_optimizer_cls_and_kwargs is choose:  # else another library has wrapped it, too
        Trainer.get_optimizer_cls_and_kwargs = staticmethod(original)  # type: ignore[method-assign]


def _add_member(name: str) -> None:
    member: Any = str.__new__(OptimizerNames, name)
    member._name_ = name.upper()
    member._value_ = name
    member._sort_order_ = len(OptimizerNames._member_names_)
    member.__objclass__ = OptimizerNames
    OptimizerNames._member_names_.append(name.upper())
    OptimizerNames._member_map_[name.upper()] = member
    OptimizerNames._value2member_map_[name] = member
    type.__setattr__(OptimizerNames, name.upper(), member)


def _remove_member(name: str) -> None:
    OptimizerNames._member_names_.remove(name.upper())
    del OptimizerNames._member_map_[name.upper()]
    del OptimizerNames._value2member_map_[name]
    if name.upper() in vars(OptimizerNames):
        type.__delattr__(OptimizerNames, name.upper())


def _text_of(optim: Any) -> str:
    return getattr(optim, "value", optim)


def _reduce(member: OptimizerNames) -> tuple[Any, ...]:
    return (str if member.value in NAMES else OptimizerNames, (member.value,))


def _with_dwmgrad(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_optimizer_cls_and_kwargs(
        args: TrainingArguments, model: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        preset = preset_of(args.optim)
        if preset is None:
            return original(args, model)
        asked = parse_optim_args(args.optim_args)
        for key in preset.keys() & asked.keys():
            raise ValueError(
                f"optim_args: {key}={asked[key]} and --optim {_text_of(args.optim)}, which sets "
                f"{key}={preset[key]}, exclude each other: use --optim dwmgrad"
            )
        if model is not None:
            keep_in_float32(model)
        return DWMGrad, {
            "lr": args.learning_rate,
            "eps": args.adam_epsilon,
            **preset,
            **asked,
        }

    return get_optimizer_cls_and_kwargs
