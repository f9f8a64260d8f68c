"""Methods and functions of other libraries, wrapped so that dwmgrad hears of their calls.

A class is wrapped, not an instance: hosts make new ones. A second wrapping does nothing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any


def wrap(owner: type | ModuleType, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Lets `around(method, ...)`, with its arguments, stand for a class's method or a function.

    Returns:
        What puts the method back, unless another library has wrapped it, too, by then.
    """
    static = inspect.getattr_static(owner, name)
    method = getattr(owner, name)
    if hasattr(method, "feeds_dwmgrad"):
        return lambda: None

    @functools.wraps(method)
    def new(*args: Any, **kwargs: Any) -> Any:
        return around(method, *args, **kwargs)

    new.feeds_dwmgrad = True  # type: ignore[attr-defined]
    placed = staticmethod(new) if isinstance(static, staticmethod) else new
    setattr(owner, name, placed)

    def unwrap() -> None:
        if vars(owner)[name] is placed:
            setattr(owner, name, static)

    return unwrap


def tell_before(owner: type, name: str, tell: Callable[[Any], Any]) -> Callable[[], None]:
    """As `wrap`, to call `tell(self)` before the method."""

    def around(method: Any, self: Any, /, *args: Any, **kwargs: Any) -> Any:
        tell(self)
        return method(self, *args, **kwargs)

    return wrap(owner, name, around)


def tell_after(owner: type, name: str, tell: Callable[..., Any]) -> Callable[[], None]:
    """As `wrap`, to call `tell(self, result, ...)`, with the method's arguments, after it."""

    def around(method: Any, self: Any, /, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        tell(self, result, *args, **kwargs)
        return result

    return wrap(owner, name, around)
