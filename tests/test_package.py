"""The wheel and the source distribution: what is in them, and that the wheel works by itself."""

from __future__ import annotations

import email
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import kernel_digest
import pytest
from pages import ROOT

from dwmgrad.kernels import native

BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""
needs_library = pytest.mark.skipif(native.library() is None, reason="no compiler built the kernel")
LEFT_OUT = {
    ".git",
    ".venv*",
    "*cache*",
    "__pycache__",
    "*.egg-info",
    "*.so",
    "*.dll",
    "build",
    "dist",
    "runs",
    "site",
}


def build(folder: Path, **environment: str) -> Path:
    """Both, built from a copy of the checkout: no network, and nothing is left in the checkout."""
    shutil.copytree(ROOT, folder / "copy", ignore=shutil.ignore_patterns(*LEFT_OUT))
    run(sys.executable, "-c", BUILD, str(folder), cwd=folder / "copy", **environment)
    return folder


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def no_tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an environment has where there is no compiler."""
    return {"PATH": str(tmp_path_factory.mktemp("empty")), "CC": "no-such-compiler"}


def files_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in names}


def modules() -> set[str]:
    library = ROOT / "src" / "dwmgrad"
    found = [*library.rglob("*.py"), *library.rglob("*.typed")]
    return {path.relative_to(ROOT / "src").as_posix() for path in found}


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    sets = runpy.run_path(str(ROOT / "setup.py"))["libraries"]()
    suffix = ".dll" if sys.platform == "win32" else ".so"
    kernels = {each.name.replace(".", "/") + suffix for each in sets}
    if native.library() is None:
        kernels = set()
    files = files_of(wheel)
    assert files.keys() == modules() | kernels
    for name in ("py.typed", "startup/sitecustomize.py"):
        assert f"dwmgrad/{name}" in files
    assert re.search(r"-py3-none-(linux|manylinux|macosx|win)\w+\.whl$", wheel.name)
    assert wheel.stat().st_size <= 200_000  # libraries included
    for name in kernels:
        # the name of a library that it is linked with would be in its table of strings
        assert not re.search(rb"lib[gi]?omp|vcomp|libm\.|libpython", files[name])


@needs_library
def test_the_wheel_computes_the_recorded_bits_where_there_is_no_compiler(wheel, no_tools, tmp_path):
    """Installed, away from the checkout."""
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-cache-dir"]
    run(*pip, "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path, **no_tools)
    script = shutil.copy(kernel_digest.__file__, tmp_path)
    path = {"PYTHONPATH": str(tmp_path / "site")}
    library, *digests = run(sys.executable, script, cwd=tmp_path, **path, **no_tools).splitlines()
    assert Path(library).is_relative_to(tmp_path / "site")
    assert digests == [*kernel_digest.RECORDED.values()]


def test_a_wheel_built_without_a_compiler_has_all_but_the_kernel(no_tools, tmp_path):
    (path,) = build(tmp_path, **no_tools).glob("*.whl")
    assert files_of(path).keys() == modules()


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
        import dwmgrad, torch
        print(dwmgrad.__file__)
        layer = torch.nn.Linear(3, 1)
        optimizer = dwmgrad.DWMGrad(layer.parameters(), lr=0.01, preset="finetune")
        for _ in range(3):
            optimizer.zero_grad()
            loss = layer(torch.ones(4, 3)).square().mean()
            loss.backward()
            optimizer.step(loss=loss)
        print(optimizer.last_loss < 10, optimizer.window)
    """
    code = re.sub(r"^ {8}", "", code, flags=re.M)
    path = {"PYTHONPATH": str(tmp_path / "site")}
    file, result = run(sys.executable, "-c", code, cwd=tmp_path, **path).splitlines()
    assert Path(file).is_relative_to(tmp_path / "site") and result.startswith("True ")


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_its_metadata(metadata):
    assert metadata["Author"] in (ROOT / "CITATION.cff").read_text("utf-8")
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_all("Requires-Dist")[0] == "torch>=2.5"
    assert "Paper, https://arxiv.org/abs/2510.25042" in metadata.get_all("Project-URL")
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata.get_all("Classifier")))
    assert re.findall(r'"(3\.\d+)"', workflow.split("python: [")[1].split("]")[0]) == versions


def test_its_description_has_no_relative_link(metadata):
    text = metadata.get_payload(decode=True).decode("utf-8")
    assert "# dwmgrad" in text and 'optim="dwmgrad_finetune"' in text
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all(target.startswith("https://") for target in targets)


def test_the_source_distribution_holds_what_is_committed(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    committed = {"README.md"}
    if (ROOT / ".git").exists():  # not where it was unpacked itself
        listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
        committed |= set(listed.splitlines())
    assert committed - names <= {".gitignore"}
    assert not any("__pycache__" in name for name in names)
    for name in (
        "src/dwmgrad/kernels/native.c",
        "tests/conftest.py",
        "scripts/glue/sample/config.json",
        "configs/demo.yaml",
    ):
        assert name in names
