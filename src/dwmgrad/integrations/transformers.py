"""`--optim dwmgrad` and its kin: the names, known to transformers as if it were built in.

Nothing of transformers is imported before it is needed: `add_names` wants its training arguments,
`enter_trainer` its Trainer, and each runs when the user has imported that.
"""

from __future__ import annotations

import copyreg
import functools
import sys
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ..optimizer import DWMGrad
from ..state import keep_in_float32
from .names import NAMES, member_of
from .optim_args import check, settings_of

_undo: dict[str, list[Callable[[], object]]] = {}
"""What was done, and how it is taken back, latest last."""
_lock = threading.Lock()
"""Held while nothing is imported, so that it cannot wait for an import that waits for it."""


def register() -> None:
    """Makes `TrainingArguments(optim="dwmgrad")`, `--optim dwmgrad_8bit` and so on work.

    A second call does nothing.

    Raises:
        ImportError: if transformers is not installed.
    """
    add_names()
    if "transformers.trainer" in sys.modules:  # else `connect` waits for it
        enter_trainer()


def unregister() -> None:
    """Takes `register` back: names, parser and Trainer are as they were without dwmgrad."""
    with _lock:
        for steps in _undo.values():
            while steps:
                steps.pop()()
        _undo.clear()


def add_names() -> None:
    """Makes the names members of transformers' enum, and checks `optim_args` with the arguments."""
    from transformers.training_args import OptimizerNames, TrainingArguments

    with _lock:
        if "names" in _undo:
            return
        undo = _undo["names"] = []
        for name in NAMES:
            _add_member(OptimizerNames, name)
            undo.append(functools.partial(_remove_member, OptimizerNames, name))
        # A pickled member could not be loaded where dwmgrad is not imported (training_args.bin); as
        # a plain str it can, and is still equal to the member. A child process gets the member.
        copyreg.pickle(OptimizerNames, _as_text)  # type: ignore[arg-type]
        undo.append(lambda: copyreg.dispatch_table.pop(OptimizerNames, None))
        ForkingPickler.register(OptimizerNames, _as_member)
        undo.append(lambda: ForkingPickler._extra_reducers.pop(OptimizerNames, None))  # type: ignore[attr-defined]
        post_init = _checking(TrainingArguments.__post_init__)
        undo.append(_replace(TrainingArguments, "__post_init__", post_init))


def enter_trainer() -> None:
    """Lets the Trainer make a DWMGrad by its name, and gives it the callback."""
    from transformers.trainer import DEFAULT_CALLBACKS, Trainer

    from .callback import DWMGradCallback

    callbacks: list[Any] = DEFAULT_CALLBACKS
    with _lock:
        if "trainer" in _undo:
            return
        choose = staticmethod(_with_dwmgrad(Trainer.get_optimizer_cls_and_kwargs))
        _undo["trainer"] = [_replace(Trainer, "get_optimizer_cls_and_kwargs", choose)]
        callbacks.append(DWMGradCallback)
        _undo["trainer"].append(functools.partial(_remove_callback, callbacks, DWMGradCallback))


def _remove_callback(callbacks: list[Any], callback: type) -> None:
    if callback in callbacks:
        callbacks.remove(callback)


def _replace(owner: type, name: str, new: Any) -> Callable[[], None]:
    """Sets a class's attribute; returns what sets the old one again."""
    old = vars(owner)[name]
    setattr(owner, name, new)

    def back() -> None:
        if vars(owner)[name] is new:  # else another library has wrapped it, too
            setattr(owner, name, old)

    return back


def _add_member(names: Any, name: str) -> None:
    member: Any = str.__new__(names, name)
    member._name_ = name.upper()
    member._value_ = name
    member._sort_order_ = len(names._member_names_)
    member.__objclass__ = names
    names._member_names_.append(name.upper())
    names._member_map_[name.upper()] = member
    names._value2member_map_[name] = member
    type.__setattr__(names, name.upper(), member)


def _remove_member(names: Any, name: str) -> None:
    names._member_names_.remove(name.upper())
    del names._member_map_[name.upper()]
    del names._value2member_map_[name]
    if name.upper() in vars(names):
        type.__delattr__(names, name.upper())


def _as_text(member: Any) -> tuple[Any, ...]:
    return (str if member.value in NAMES else type(member), (member.value,))


def _as_member(member: Any) -> tuple[Any, ...]:
    return (member_of if member.value in NAMES else type(member), (member.value,))


def _checking(post_init: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(post_init)
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> Any:
        settings = settings_of(self)
        if settings is not None:
            check(settings)
        return post_init(self, *args, **kwargs)

    return __post_init__


def _with_dwmgrad(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        settings = settings_of(args)
        if settings is None:
            return original(args, model)
        if model is not None:
            keep_in_float32(model)
        return DWMGrad, settings

    return get_optimizer_cls_and_kwargs
