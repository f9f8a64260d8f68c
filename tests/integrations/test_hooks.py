"""Our code inside other people's imports: it changes none of them, and none can fail by it."""

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import threading
import warnings
import zipfile
import zipimport
from pathlib import Path

import pytest

from dwmgrad.integrations.hooks import after_import


@pytest.fixture
def package(tmp_path: Path, monkeypatch):
    """A package on the path, in a folder or in a zip file; what is imported is forgotten again."""

    def make(kind: str = "folder", **modules: str) -> None:
        files = {"guest_host/__init__.py": ""}
        files |= {f"guest_host/{name}.py": text for name, text in modules.items()}
        files["guest_host/data.txt"] = "data"
        if kind == "zip":
            with zipfile.ZipFile(tmp_path / "host.zip", "w") as archive:
                for name, text in files.items():
                    archive.writestr(name, text)
            monkeypatch.syspath_prepend(str(tmp_path / "host.zip"))
        else:
            for name, text in files.items():
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_text(text)
            monkeypatch.syspath_prepend(str(tmp_path))

    finders = list(sys.meta_path)
    yield make
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.partition(".")[0] == "guest_host"]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_loader_that_serves_many_modules_stays_as_it_is(package, kind: str) -> None:
    package(kind, a="X = 1", b="X = 2")
    called: list[str] = []
    finders = list(sys.meta_path)
    after_import("guest_host.a", lambda module: called.append(module.X))
    spec = importlib.util.find_spec("guest_host.a")  # and no import follows
    real = zipimport.zipimporter if kind == "zip" else importlib.machinery.SourceFileLoader
    assert isinstance(spec.loader, real) and spec.loader.get_source("guest_host.a") == "X = 1"
    b = importlib.import_module("guest_host.b")
    assert called == [] and b.X == 2
    a = importlib.import_module("guest_host.a")
    assert called == [1] and sys.meta_path == finders
    assert type(a.__loader__) is type(a.__spec__.loader) is real
    assert a.__spec__.loader is a.__loader__ and "exec_module" not in vars(b.__loader__)
    assert a.__spec__.loader.get_source("guest_host.a") == "X = 1"
    host = sys.modules["guest_host"]
    assert importlib.resources.files(host).joinpath("data.txt").read_text() == "data"
    assert importlib.reload(a) is a and called == [1]


def test_a_finder_that_keeps_its_specs_gets_them_back_unchanged(package) -> None:
    package(a="X = 1")
    importlib.import_module("guest_host")
    kept = importlib.util.find_spec("guest_host.a")
    loader = kept.loader

    class Keeps:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return kept if name == "guest_host.a" else None

    sys.meta_path.insert(0, Keeps)
    called: list[bool] = []
    after_import("guest_host.a", lambda _: called.append(True))
    importlib.import_module("guest_host.a")
    assert called and kept.loader is loader


def test_a_module_that_is_loaded_late_stays_so(package) -> None:
    package(a="import guest_host\nguest_host.ran = True\nX = 1")
    host = importlib.import_module("guest_host")
    called: list[int] = []
    after_import("guest_host.a", lambda module: called.append(module.X))
    spec = importlib.util.find_spec("guest_host.a")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["guest_host.a"] = module
    spec.loader.exec_module(module)
    assert not hasattr(host, "ran") and called == []
    assert module.X == 1 and called == [1]
    assert type(module.__spec__.loader) is importlib.machinery.SourceFileLoader


def test_a_finder_that_loads_late_is_left_to_it(package) -> None:
    package(a="import guest_host\nguest_host.ran = True\nX = 1")
    host = importlib.import_module("guest_host")

    class Late:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name != "guest_host.a":
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            spec.loader = importlib.util.LazyLoader(spec.loader)
            return spec

    sys.meta_path.insert(0, Late)
    called: list[int] = []
    after_import("guest_host.a", lambda module: called.append(module.X))
    module = importlib.import_module("guest_host.a")
    assert not hasattr(host, "ran") and called == []
    assert module.X == 1 and called == [1]


def test_an_import_that_fails_may_be_tried_again(package, tmp_path: Path) -> None:
    package(a="raise ImportError('not yet')")
    called: list[bool] = []
    after_import("guest_host.a", lambda _: called.append(True))
    with pytest.raises(ImportError, match="not yet"):
        importlib.import_module("guest_host.a")
    assert called == []
    (tmp_path / "guest_host" / "a.py").write_text("value = 1  # of another length")
    importlib.invalidate_caches()
    assert importlib.import_module("guest_host.a").value == 1 and called == [True]


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("action", ["always", "error"])
def test_a_call_that_fails_is_one_warning(package, imported: bool, action: str, capsys) -> None:
    package(a="X = 1")
    if imported:
        importlib.import_module("guest_host.a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        after_import("guest_host.a", lambda _: 1 / 0)
        assert importlib.import_module("guest_host.a").X == 1
    said = [str(warning.message) for warning in caught] + capsys.readouterr().err.splitlines()
    [message] = said
    assert "could not attach itself to guest_host.a" in message and "ZeroDivisionError" in message


def test_two_threads_that_import_at_once(package) -> None:
    package(a="import time\ntime.sleep(0.2)\nX = 1")
    importlib.import_module("guest_host")
    called: list[int] = []
    found: list[int] = []
    after_import("guest_host.a", lambda _: called.append(1))
    threads = [
        threading.Thread(target=lambda: found.append(importlib.import_module("guest_host.a").X))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [1] * 4 and called == [1]


def test_a_second_copy_of_the_library_does_not_break_the_import(package) -> None:
    """As in a notebook that takes dwmgrad out of sys.modules and imports it again."""
    package(one="X = 1")
    source = importlib.util.find_spec("dwmgrad.integrations.hooks")
    assert source is not None and source.loader is not None
    other = importlib.util.module_from_spec(source)
    source.loader.exec_module(other)
    called = []
    for copy in (after_import, other.after_import):
        copy("guest_host.one", lambda module: called.append(module.X))
    before = len(sys.meta_path)
    assert importlib.import_module("guest_host.one").X == 1
    assert called == [1, 1] and len(sys.meta_path) == before - 2


def test_threads_that_import_dwmgrad_and_the_trainer_at_once() -> None:
    code = """
import importlib, threading
import torch
names = ["transformers.trainer", "dwmgrad", "dwmgrad.integrations.callback", "accelerate"]
threads = [threading.Thread(target=importlib.import_module, args=(name,)) for name in names]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
import dwmgrad
dwmgrad.register()
from transformers import Trainer, TrainingArguments
args = TrainingArguments("x", optim="dwmgrad", report_to="none")
assert Trainer.get_optimizer_cls_and_kwargs(args)[0] is dwmgrad.DWMGrad
from accelerate import Accelerator
assert Accelerator.backward.feeds_dwmgrad
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200
    )
    assert found.returncode == 0 and "attach" not in found.stderr, found.stderr


class AsClass:
    """Used as it is, not as an instance: as the loaders of frozen modules are."""

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module) -> None:
        module.X = 1


class NotToBeCopied(AsClass):
    def __copy__(self):
        raise TypeError("cannot be copied")


@pytest.mark.parametrize("loader", [AsClass, NotToBeCopied()], ids=["a class", "no copy"])
def test_loaders_of_other_kinds(package, loader) -> None:
    package(a="X = 2")

    class Finds:
        @staticmethod
        def find_spec(name, path=None, target=None):
            found = name == "guest_host.a"
            return importlib.machinery.ModuleSpec(name, loader) if found else None

    sys.meta_path.insert(0, Finds)
    called: list[int] = []
    after_import("guest_host.a", lambda module: called.append(module.X))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert importlib.import_module("guest_host.a").X == 1
    said = [str(warning.message) for warning in caught]
    if loader is AsClass:
        assert called == [1] and said == []
        assert loader.exec_module is vars(AsClass)["exec_module"].__func__
    else:
        assert called == [] and "could not attach itself to guest_host.a" in said[0]
