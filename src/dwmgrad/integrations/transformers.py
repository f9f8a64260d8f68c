"""`--optim dwmgrad` and its kin, known to transformers as if they were built in."""

from __future__ import annotations

import copyreg
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

from ..optimizer import DWMGrad
from ..patching import tell_before, wrap
from ..state import keep_in_float32
from .optim_args import NAMES, check, preset_of, settings_of

_undo: dict[str, ExitStack] = {}
"""What was done, and how it is taken back."""
_lock = threading.Lock()
"""Held while nothing is imported, so that it cannot wait for an import that waits for it."""


def add_names(host: ModuleType) -> None:
    """Adds the names that transformers' enum lacks; checks `optim_args` with the arguments."""
    names, reducers = host.OptimizerNames, ForkingPickler._extra_reducers  # type: ignore[attr-defined]
    with _lock:
        if "names" in _undo:
            return
        undo = _undo["names"] = ExitStack()
        added = [name for name in NAMES if name not in names._value2member_map_]
        for name in added:
            _add_member(names, name)
            undo.callback(_remove_member, names, name)
        # A pickled member could not be loaded where dwmgrad is not imported (training_args.bin); as
        # a plain str it can, and is still equal to the member. A child process gets the member.
        copyreg.pickle(names, _made_by(str, added))
        undo.callback(copyreg.dispatch_table.pop, names, None)
        ForkingPickler.register(names, _made_by(member_of, added))
        undo.callback(reducers.pop, names, None)
        undo.callback(tell_before(host.TrainingArguments, "__post_init__", check))


def enter_trainer(host: ModuleType) -> None:
    """Lets the Trainer make a DWMGrad by its name, and gives it the callback."""
    from .callback import DWMGradCallback  # imports transformers

    with _lock:
        if "trainer" in _undo:
            return
        undo = _undo["trainer"] = ExitStack()
        undo.callback(wrap(host.Trainer, "get_optimizer_cls_and_kwargs", _with_dwmgrad))
        host.DEFAULT_CALLBACKS.append(DWMGradCallback)
        undo.enter_context(suppress(ValueError))  # the user may have removed it
        undo.callback(host.DEFAULT_CALLBACKS.remove, DWMGradCallback)


def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
    """What the Trainer makes its optimizer of where `args.optim` is one of our names."""
    settings: Any = settings_of(args)
    if model is not None:
        keep_in_float32(model)
    return DWMGrad, settings


def detach() -> None:
    """Takes `add_names` and `enter_trainer` back."""
    with _lock:
        while _undo:
            _undo.popitem()[1].close()


def member_of(name: str) -> Any:
    """The name as a member of transformers' enum, in a process that need not know it yet.

    Arguments that are sent to a child process are made by this.
    """
    from transformers import training_args

    add_names(training_args)
    return training_args.OptimizerNames(name)


def _add_member(names: Any, name: str) -> None:
    member: Any = str.__new__(names, name)
    member._name_ = name.upper()
    member._value_ = name
    member._sort_order_ = len(names._member_names_)
    member.__objclass__ = names
    names._member_names_.append(name.upper())
    names._member_map_[name.upper()] = member
    names._value2member_map_[name] = member
    if hasattr(names, "_hashable_values_"):  # where Python 3.13 and later look for `in`
        names._hashable_values_.append(name)
    type.__setattr__(names, name.upper(), member)


def _remove_member(names: Any, name: str) -> None:
    names._member_names_.remove(name.upper())
    del names._member_map_[name.upper()]
    del names._value2member_map_[name]
    if hasattr(names, "_hashable_values_"):
        names._hashable_values_.remove(name)
    if name.upper() in vars(names):
        type.__delattr__(names, name.upper())


def _made_by(make: Callable[[str], Any], ours: list[str]) -> Callable[[Any], tuple[Any, ...]]:
    """How the enum's members are pickled: ours as a call of `make`, the others as ever."""
    return lambda member: (make if member.value in ours else type(member), (member.value,))


def _with_dwmgrad(original: Any, args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
    ours = preset_of(args.optim) is not None
    return (get_optimizer_cls_and_kwargs if ours else original)(args, model)
