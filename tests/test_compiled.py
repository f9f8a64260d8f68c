"""How the CPU kernel is built and kept: by any compiler, in any home, and never another's code."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest

from dwmgrad.kernels import compiled, native

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler")
SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small C file, with a cache folder and a folder for temporary files of its own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "answer.c").write_text(SOURCE)
    return tmp_path / "answer.c"


def check(library: ctypes.CDLL) -> None:
    if not hasattr(library, "answer") or library.answer() != 42:
        raise OSError("not the answer")


def load(source: Path) -> None:
    assert compiled.load(source, check).answer() == 42
    assert not list((source.parent / "temporary").iterdir())


def kept(source: Path) -> Path:
    """The library in the cache, and nothing else."""
    (path,) = (source.parent / "cache" / "dwmgrad").iterdir()
    return path


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def other_library(source: Path) -> bytes:
    """Whole, but it does something else."""
    other = source.with_name("other.c")
    other.write_text("int answer(void) { return 41; }\n")
    compiled._compile(["gcc"], other, other.with_suffix(".so"))
    return other.with_suffix(".so").read_bytes()


def replaced(path: Path, content: bytes) -> None:
    path.unlink()  # what is loaded keeps its file
    path.write_bytes(content)
    path.chmod(0o700)


def own_by_another(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("not root")
    os.chown(path, 12345, -1)


def link_to_another(path: Path) -> None:
    path.rename(path.parents[2] / "moved.so")
    path.symlink_to(path.parents[2] / "moved.so")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SPOILED = {
    "empty": lambda path, _: replaced(path, b""),
    "cut": lambda path, _: replaced(path, path.read_bytes()[:9000]),
    "one byte": lambda path, _: replaced(path, b"\0" + path.read_bytes()[1:]),
    "another's text": lambda path, _: replaced(path, b"hello\n" * 1000),
    "whole, no library": lambda path, _: replaced(path, sealed(b"hello\n" * 1000)),
    "whole, cut": lambda path, _: replaced(path, sealed(path.read_bytes()[:500])),
    "whole, wrong": lambda path, source: replaced(path, other_library(source)),
    "others may write": lambda path, _: path.chmod(0o722),
    "another's": lambda path, _: own_by_another(path),
    "a link": lambda path, _: link_to_another(path),
    "a pipe": lambda path, _: a_pipe(path),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_is_not_whole_or_not_ours_is_built_again_once(how: str, source: Path) -> None:
    load(source)
    SPOILED[how](kept(source), source)
    spoiled = kept(source).lstat()
    load(source)
    mended = kept(source).lstat()
    assert mended.st_ino != spoiled.st_ino
    load(source)
    if how != "whole, wrong":  # by this name this process has the wrong one for ever
        assert kept(source).lstat().st_mtime_ns == mended.st_mtime_ns


def test_a_folder_in_its_place_is_left_alone(source: Path) -> None:
    load(source)
    path = kept(source)
    path.unlink()
    path.mkdir()
    load(source)
    assert kept(source).is_dir()


def test_nobody_else_may_write_it_whatever_the_umask(source: Path) -> None:
    before = os.umask(0)
    try:
        load(source)
    finally:
        os.umask(before)
    assert kept(source).stat().st_mode & 0o022 == 0
    assert kept(source).parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOME", None),
        ("HOME", ""),
        ("HOME", "relative"),
        ("HOME", "/nonexistent"),
        ("HOME", "/dev/null"),
        ("XDG_CACHE_HOME", "relative"),
        ("XDG_CACHE_HOME", "/dev/null/cache"),
        ("XDG_CACHE_HOME", "/proc/cache"),
        ("XDG_CACHE_HOME", "{}/with blanks/and more"),
    ],
)
def test_any_home_will_do(
    name: str, value: str | None, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    home = source.parent / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.chdir(home)
    if value is None:
        monkeypatch.delenv(name)
        monkeypatch.setattr(Path, "home", no_home)  # as for a user whom nobody knows
    else:
        monkeypatch.setenv(name, value.format(source.parent))
    load(source)
    written = [path for path in home.rglob("*") if path.is_file()]
    assert bool(written) == (value == "relative" and name == "XDG_CACHE_HOME")
    assert all(path.parent == home / ".cache" / "dwmgrad" for path in written)
    assert not Path("/nonexistent").exists()
    assert (source.parent / "with blanks").exists() == ("blanks" in (value or ""))


def test_another_users_folder_is_not_used(source: Path) -> None:
    folder = source.parent / "cache" / "dwmgrad"
    folder.mkdir(parents=True)
    own_by_another(folder)
    load(source)
    assert not list(folder.iterdir())


def script(source: Path, text: str, name: str = "compiler") -> str:
    path = source.parent / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("how", ["blank in its path", "arguments", "blank", "quoted"])
def test_what_a_compiler_may_be_called(
    how: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_blank = script(source, 'exec gcc "$@"', "my gcc")
    command = {
        "blank in its path": with_blank,
        "arguments": "env LANG=C gcc",
        "blank": "  ",
        "quoted": f"'{with_blank}' -g0",
    }
    monkeypatch.setenv("CC", command[how])
    load(source)
    kept(source)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("exit 3", r"ended with 3\)"),
        (r"printf '\n   \n' >&2; exit 1", r"ended with 1\)"),
        (r"printf 'x.c: \377\376 error\nended.\n' >&2; exit 1", "ended with 1: x.c: \ufffd"),
        ("kill -9 $$", r"ended with -9\)"),
        ("exit 0", "wrote nothing"),
        ('echo hello > "$(echo "$@" | sed "s/.* -o //; s/ .*//")"', "set XDG_CACHE_HOME to"),
    ],
)
def test_a_compiler_that_fails_is_told_of_once(
    does: str, says: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", script(source, f"cd {source.parent}; {does}"))
    native.library.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert native.library() is None and native.library() is None
    finally:
        native.library.cache_clear()
    (warning,) = caught
    assert "Install gcc, or set DWMGRAD_NATIVE=0" in str(warning.message)
    with pytest.raises(OSError, match=says.replace(r"\)", "$")):
        load(source)
    assert not list((source.parent / "cache" / "dwmgrad").iterdir())


def test_a_compiler_that_hangs_is_ended_with_its_children(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_PATIENCE", 0.5)
    pid = source.parent / "pid"
    monkeypatch.setenv("CC", script(source, f"sleep 100 & echo $! > {pid}; wait"))
    begin = time.monotonic()
    with pytest.raises(OSError, match="took more than"):
        load(source)
    assert time.monotonic() - begin < 10
    assert is_gone(int(pid.read_text()))


def is_gone(pid: int) -> bool:
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.1)
    return False


def test_after_an_interrupt_the_next_call_begins_anew(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = source.parent / "pid"
    interrupts = f"sleep 100 & echo $! > {pid}; kill -INT $PPID; wait"
    monkeypatch.setenv("CC", script(source, interrupts))
    native.library.cache_clear()
    try:
        with pytest.raises(KeyboardInterrupt):
            native.library()
        assert not list((source.parent / "cache" / "dwmgrad").iterdir())
        assert is_gone(int(pid.read_text()))
        monkeypatch.delenv("CC")
        assert native.library() is not None
    finally:
        native.library.cache_clear()


def test_what_killed_builds_have_left_goes_with_the_next(source: Path) -> None:
    folder = source.parent / "cache" / "dwmgrad"
    for place in (folder, source.parent / "temporary"):
        for name, age in ((".dwmgrad-build-old", 3600), (".dwmgrad-build-new", 1), ("mine", 3600)):
            (place / name).mkdir(parents=True)
            (place / name / "native.so.o").write_bytes(b"0" * 100)
            os.utime(place / name, (time.time() - age,) * 2)
    compiled.load(source, check)
    assert {path.name for path in folder.glob("*")} > {".dwmgrad-build-new", "mine"}
    assert not (folder / ".dwmgrad-build-old").exists()
    shutil.rmtree(folder)
    folder.write_text("")  # so that it goes elsewhere
    compiled.load(source, check)
    left = {path.name for path in (source.parent / "temporary").iterdir()}
    assert left == {".dwmgrad-build-new", "mine"}


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


def started(folder: Path, **environment: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "XDG_CACHE_HOME": str(folder), **environment}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", STEP], env=env, stdout=pipe, text=True)


def in_a_process(folder: Path, **environment: str) -> str:
    process = started(folder, **environment)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return said


def test_it_is_compiled_once_and_kept(tmp_path: Path) -> None:
    """By two processes at once, too."""
    both = [started(tmp_path) for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=120)[0].startswith("0 []")
    (built,) = (tmp_path / "dwmgrad").glob("*")
    first = built.stat().st_mtime_ns
    assert in_a_process(tmp_path).startswith("0 []")
    assert [p.stat().st_mtime_ns for p in (tmp_path / "dwmgrad").glob("*")] == [first]


def test_without_a_compiler_it_says_so_once_and_steps_all_the_same(tmp_path: Path) -> None:
    with_kernel = in_a_process(tmp_path / "a").split()[-1]
    for folder, compiler in (("b", "no-such-compiler"), ("c", "false")):
        found = in_a_process(tmp_path / folder, CC=compiler)
        assert found.startswith("1 [") and "Install gcc, or set DWMGRAD_NATIVE=0" in found
        assert abs(float(found.split()[-1]) - float(with_kernel)) < 1e-6
    assert in_a_process(tmp_path / "d", CC="false", DWMGRAD_NATIVE="0").startswith("0 []")


def test_a_cache_that_others_may_write_into_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "dwmgrad").mkdir()
    (tmp_path / "dwmgrad").chmod(0o777)
    found = in_a_process(tmp_path)
    assert found.startswith("1 [") and "others may write into" in found and "chmod go-w" in found
    assert not list((tmp_path / "dwmgrad").iterdir())
