"""How dwmgrad enters a host library: after its import.

What runs here runs inside somebody else's import, so none of it may fail, or change, that import.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

Attach = Callable[[ModuleType], object]
"""Called with a host's module; it may be called again."""


def after_import(name: str, attach: Attach) -> None:
    """Calls `attach` once the module `name` is imported; now, if it is.

    If `attach` fails, there is a warning, and the import goes on.
    """
    if name in sys.modules:
        _attach(name, attach)
    elif not any(type(finder) is _Finder and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, attach))


def no_longer_after_import(package: str) -> None:
    """Takes back what still waits for the import of one of a package's modules."""
    for finder in [each for each in sys.meta_path if type(each) is _Finder]:
        if finder.name.startswith(f"{package}."):
            finder.remove()


def _attach(name: str, attach: Attach) -> None:
    try:
        attach(importlib.import_module(name))  # waits for another thread that imports it
    except Exception as error:
        _warn(name, error)


def _warn(name: str, error: Exception) -> None:
    message = (
        f"dwmgrad could not attach itself to {name}, so DWMGrad does not work there "
        f"({type(error).__name__}: {error}). All else works."
    )
    try:
        warnings.warn(message, stacklevel=2)
    except Warning:  # where warnings are errors, the import goes on all the same
        print(message, file=sys.stderr)


class _Finder:
    """Lets the other finders find one module, and calls `attach` after its body has run."""

    def __init__(self, name: str, attach: Attach) -> None:
        self.name = name
        self._call = attach
        self._asks = threading.local()  # whether this thread asks the others just now

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        # another finder may ask all of them, too: that of a second copy of this module does
        if fullname != self.name or getattr(self._asks, "now", False):
            return None
        self._asks.now = True
        try:
            others = [each for each in sys.meta_path if type(each) is not _Finder]
            others = [each for each in others if hasattr(each, "find_spec")]
            found = (each.find_spec(fullname, path, target) for each in others)
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._asks.now = False
        if spec is not None:
            spec = copy.copy(spec)  # the finder may keep its own
            spec.loader = self._calling(spec.loader)
        return spec

    def _calling(self, loader: Any) -> Any:
        """A copy of the loader, which may serve other modules; the copy calls `attach` once."""
        own: Any

        def exec_module(module: ModuleType) -> None:
            spec = module.__spec__
            with contextlib.suppress(AttributeError):
                del own.exec_module
            loader.exec_module(module)
            if isinstance(loader, importlib.util.LazyLoader) and spec is not None:
                # nothing has run yet: the first access to an attribute calls the loader there
                spec.loader = self._calling(spec.loader)
            else:
                self.remove()
                _attach(self.name, self._call)

        if not hasattr(loader, "exec_module"):  # a namespace, or a loader of the old kind
            return loader
        try:
            is_class = isinstance(loader, type)
            own = type(loader.__name__, (loader,), {}) if is_class else copy.copy(loader)
            own.exec_module = exec_module
        except Exception as error:  # a loader that cannot be copied
            _warn(self.name, error)
            return loader
        return own

    def remove(self) -> None:
        with contextlib.suppress(ValueError):  # another thread may have been faster
            sys.meta_path.remove(self)
