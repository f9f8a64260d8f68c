"""One file per host library; `connect` attaches them as soon as the host is imported."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

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


def connect() -> None:
    """Lets Accelerate and Lightning hand over the losses and the Trainer show the window.

    What is imported already is attached at once, the rest when it is imported: `import dwmgrad`
    itself imports torch alone. Safe to call again.
    """
    after_import("accelerate.accelerator", _attach("dwmgrad.integrations.accelerate"))
    after_import("transformers.trainer", _attach("dwmgrad.integrations.callback"))
    for strategy in LIGHTNING:
        after_import(strategy, _attach("dwmgrad.integrations.lightning"))


def _attach(integration: str) -> Callable[[], None]:
    return lambda: importlib.import_module(integration).attach()


def after_import(name: str, then: Callable[[], None]) -> None:
    """Calls `then` once the module `name` is imported; now, if it is."""
    if name in sys.modules:
        then()
    elif not any(isinstance(f, _Finder) and f.name == name for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, then))


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
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                self._add_call(spec.loader)
                return spec
        return None

    def _add_call(self, loader: importlib.abc.Loader) -> None:
        exec_module = loader.exec_module

        def exec_and_call(module: ModuleType) -> None:
            exec_module(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self._then()

        loader.exec_module = exec_and_call  # type: ignore[method-assign]
