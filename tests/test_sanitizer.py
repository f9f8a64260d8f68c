"""The CPU kernel under AddressSanitizer and UndefinedBehaviorSanitizer: no byte beside a tensor."""

import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import ROOT

from dwmgrad.kernels import native

pytestmark = pytest.mark.slow
FLAGS = [*runpy.run_path(str(ROOT / "setup.py"))["FLAGS"], "-march=native", "-DDWMGRAD_SOURCE=0"]
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


def driven(folder: Path, text: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Runs tests/sanitizer.c with this text as the kernel."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc")
    (folder / "native.c").write_text(text)
    driver = Path(__file__).with_name("sanitizer.c")
    build = [gcc, *FLAGS, *SANITIZERS, "-Wall", "-Wextra", "-Werror", *options]
    build += ["-I", str(folder), str(driver), "-o", str(folder / "driver"), "-lm"]
    built = subprocess.run(build, capture_output=True, text=True)
    if "asan" in built.stderr:
        pytest.skip("no sanitizers")
    assert built.returncode == 0, built.stderr
    return subprocess.run([folder / "driver"], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("optimization", ["-O1", "-O3"])
def test_nothing_beside_the_tensors_and_nothing_undefined(
    optimization: str, tmp_path: Path
) -> None:
    ran = driven(tmp_path, native._SOURCE.read_text(), optimization)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "144 steps, an element skipped in 108\n"


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("n - i < BLOCK ? n - i : BLOCK", "BLOCK", "heap-buffer-overflow"),
        ("at + PIECE < t->size ? at + PIECE : t->size", "at + PIECE", "heap-buffer-overflow"),
        ("level < 126 ? level : 126", "level < 126 ? level : 300", "outside the range"),
    ],
)
def test_it_would_be_seen(right: str, wrong: str, found: str, tmp_path: Path) -> None:
    text = native._SOURCE.read_text()
    assert right in text
    ran = driven(tmp_path, text.replace(right, wrong), "-O1")
    assert ran.returncode != 0 and found in ran.stderr
