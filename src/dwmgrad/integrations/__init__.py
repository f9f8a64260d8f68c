"""One file per host library; `connect` attaches them as soon as the host is imported.

What runs here runs inside somebody else's import, so none of it may fail, or change, that import.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

LIGHTNING = tuple(
    f"{package}.strategies.strategy"
    for package in (
        "lightning.pytorch",
        "lightning.fabric",
        "pytorch_lightning",
        "lightning_fabric",
    )
)
"""Where Lightning and Fabric run backward, under all the names of their packages."""
_HOSTS = {
    "accelerate.accelerator": ("dwmgrad.integrations.accelerate", "attach"),
    "transformers.training_args": ("dwmgrad.integrations.transformers", "add_names"),
    "transformers.trainer": ("dwmgrad.integrations.transformers", "enter_trainer"),
    **dict.fromkeys(LIGHTNING, ("dwmgrad.integrations.lightning", "attach")),
}
"""Module of a host: where our side of it is, and the function to call once it is imported."""


def connect() -> None:
    """Lets Accelerate and Lightning hand over the losses, and the Trainer know `--optim dwmgrad`.

    What is imported already is attached at once, the rest when it is imported: `import dwmgrad`
    itself imports torch alone. Safe to call again.
    """
    for host, (module, function) in _HOSTS.items():
        after_import(host, _call(module, function))


def disconnect(package: str) -> None:
    """Takes back what `connect` still waits for in a host's package."""
    for finder in [f for f in sys.meta_path if type(f) is _Finder]:
        if finder.name.startswith(package + "."):
            finder.remove()


def _call(module: str, function: str) -> Callable[[], None]:
    return lambda: getattr(importlib.import_module(module), function)()


def after_import(name: str, then: Callable[[], None]) -> None:
    """Calls `then` once the module `name` is imported; now, if it is.

    If `then` fails, there is a warning, and the import goes on.
    """
    if name in sys.modules:
        _guarded(name, then)
    elif not any(type(finder) is _Finder and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, then))


def _guarded(name: str, then: Callable[[], None]) -> None:
    try:
        then()
    except Exception as error:
        message = (
            f"dwmgrad could not attach itself to {name}, so DWMGrad will not work there; all else "
            f"will ({type(error).__name__}: {error})"
        )
        try:
            warnings.warn(message, stacklevel=2)
        except Warning:  # where warnings are errors, the import is to go on all the same
            print(message, file=sys.stderr)


class _Finder(importlib.abc.MetaPathFinder):
    """Lets the other finders find one module, and adds a call after its body has run."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self.name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        for finder in list(sys.meta_path):
            if type(finder) is _Finder or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return self._with_call(spec)
        return None

    def _with_call(self, spec: importlib.machinery.ModuleSpec) -> importlib.machinery.ModuleSpec:
        if not hasattr(spec.loader, "exec_module"):  # a namespace, or a loader of the old kind
            return spec
        spec = copy.copy(spec)  # the finder may keep its own
        spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
        return spec

    def executed(self) -> None:
        """The module's body has run."""
        self.remove()
        _guarded(self.name, self._then)

    def remove(self) -> None:
        with contextlib.suppress(ValueError):  # another thread may have been faster
            sys.meta_path.remove(self)


class _Loader:
    """In one module's spec until it is executed, in front of a loader that may serve many modules.

    All but `exec_module` is the loader's own.
    """

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # of a copy that is just being made
            raise AttributeError(name)
        return getattr(self._loader, name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # so that isinstance() says what it says of the loader
        return type(self) if isinstance(self._loader, type) else type(self._loader)

    def exec_module(self, module: ModuleType) -> None:
        """As the loader does it; the module sees that loader alone."""
        loader, spec = self._loader, module.__spec__
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = loader
        if spec is not None and spec.loader is self:
            spec.loader = loader
        loader.exec_module(module)
        if isinstance(loader, importlib.util.LazyLoader) and spec is not None:
            # nothing has run yet: the first access to an attribute calls the loader that is here
            spec.loader = _Loader(spec.loader, self._finder)  # type: ignore[assignment]
        else:
            self._finder.executed()
