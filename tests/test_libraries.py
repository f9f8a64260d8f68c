"""The CPU kernel's libraries: the same bits from each, and words where there is none."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import kernel_digest
import pytest
import torch
from pages import ROOT

from dwmgrad.kernels import native

needs_library = pytest.mark.skipif(native.library() is None, reason="no library")
CAPABILITIES = ("default", "avx2", "avx512")
STEP = """
import warnings, torch
from dwmgrad import DWMGrad
param = torch.ones(5000, requires_grad=True)
optimizer = DWMGrad([param], lr=0.1)
param.grad = torch.ones(5000)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizer.step(loss=1.0)
    optimizer.step(loss=0.5)
print(len(caught), [str(w.message) for w in caught], float(param[0]))
"""


def output(*words: str, code: int = 0, **environment: str) -> str:
    """What Python prints for these arguments; it must end with this code."""
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@functools.cache
def step_with_library() -> str:
    """What `STEP` prints where nothing is amiss."""
    return output("-c", STEP)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, with its libraries."""
    folder = Path(native.__file__).parents[1]
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(folder, tmp_path / "dwmgrad", ignore=ignored))


def test_where_there_is_gcc_there_is_the_library() -> None:
    """Else the tests of the kernel would be skipped, and nobody would see it."""
    if shutil.which("gcc") is None or os.name == "nt":
        pytest.skip("no gcc")
    assert native.library() is not None, "pip install -e . builds it"


@needs_library
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_instruction_set_computes_the_same_bits(capability: str) -> None:
    here = torch.backends.cpu.get_cpu_capability().lower()
    most = CAPABILITIES.index(here) if here in CAPABILITIES else 0
    if CAPABILITIES.index(capability) > most:
        pytest.skip(f"this CPU has no {capability}")
    name = "baseline" if capability == "default" else capability
    chosen = {"ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "3"}
    library, *digests = output(kernel_digest.__file__, **chosen).splitlines()
    assert Path(library).stem == f"native_{name}"
    assert digests == [*kernel_digest.RECORDED.values()]


def test_the_digest_sees_other_roundings() -> None:
    """Those of PyTorch's operators."""
    said = output(kernel_digest.__file__, code=1, DWMGRAD_NATIVE="0").splitlines()
    assert said[0] == "None" and said[1:] != [*kernel_digest.RECORDED.values()]


def missing(library: Path) -> None:
    library.unlink()


def damaged(library: Path) -> None:
    library.unlink()  # what is loaded keeps its file
    library.write_bytes(b"hello\n" * 1000)


def of_another_source(library: Path) -> None:
    with library.with_name("native.c").open("a") as source:
        source.write("/* changed */\n")


@needs_library
@pytest.mark.parametrize(
    ("what", "says"),
    [
        (missing, "there is no"),
        (damaged, "could not be loaded"),
        (of_another_source, "was built from another native.c"),
    ],
)
def test_what_cannot_be_used_is_told_of_once(what, says: str, package: Path) -> None:
    if what is of_another_source and not (package / "kernels" / "native.c").exists():
        pytest.skip("installed without its source")
    what(package / "kernels" / Path(native.library()._name).name)
    found = output("-c", STEP, PYTHONPATH=str(package.parent))
    assert found.startswith("1 [") and says in found and "set DWMGRAD_NATIVE=0" in found
    assert step_with_library().startswith("0 []")
    assert abs(float(found.split()[-1]) - float(step_with_library().split()[-1])) < 1e-6


def test_it_can_be_turned_off(package: Path) -> None:
    for library in (package / "kernels").glob("native_*"):
        library.unlink()
    found = output("-c", STEP, PYTHONPATH=str(package.parent), DWMGRAD_NATIVE="0")
    assert found.startswith("0 []")


@pytest.mark.newest
@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "no compiler"])
def test_an_editable_install_builds_what_it_can(compiler: bool, tmp_path: Path) -> None:
    if compiler and native.library() is None:
        pytest.skip("no compiler")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    left_out = shutil.ignore_patterns("*.so", "*.dll", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=left_out)
    code = "import os, sys; from setuptools import build_meta; os.chdir(sys.argv[1]);"
    code += "build_meta.build_editable('.')"
    output("-c", code, str(tmp_path), **({} if compiler else {"CC": "no-such-compiler"}))
    assert [*tmp_path.glob("*.whl")]
    libraries = [*(tmp_path / "src" / "dwmgrad" / "kernels").glob("native_*")]
    assert bool(libraries) == compiler
