"""The wheel and the source distribution: what is in them, and that the wheel works by itself."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from pages import ROOT

BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""
LEFT_OUT = {
    ".git",
    ".venv*",
    "*cache*",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    "runs",
    "site",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, built from a copy of the checkout: no network, and nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "copy", ignore=shutil.ignore_patterns(*LEFT_OUT))
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=folder / "copy", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    assert wheel.stat().st_size <= 200_000
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    library = ROOT / "src" / "dwmgrad"
    suffixes = (".py", ".c", ".typed")
    here = {
        p.relative_to(ROOT / "src").as_posix() for p in library.rglob("*") if p.suffix in suffixes
    }
    assert names == here
    for name in ("kernels/native.c", "py.typed", "startup/sitecustomize.py"):
        assert f"dwmgrad/{name}" in names


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
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", re.sub(r"^ {8}", "", code, flags=re.M)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, result = done.stdout.splitlines()
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
    for name in ("tests/conftest.py", "scripts/glue/sample/config.json", "configs/demo.yaml"):
        assert name in names
