"""Compiles a C file on the user's machine and keeps the library in the user's cache folder.

A library is code that runs as the user. One from the cache is loaded only if

- nobody else can have written it: it is a plain file, and file and folder are the user's alone;
- it is whole: it ends with the digest of all before. Half a library crashes the loader;
- it does what it should, which `load` is told how to find out.

Else it is built again, in a folder that does not stay, and takes the place of the old one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# No -ffast-math: NaN and infinities must be seen. No contraction: the same numbers on every CPU.
_FLAGS = (
    "-O3 -march=native -fopenmp -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=off"
).split()
_PATIENCE = 30.0
"""Seconds for the compiler, which takes less than one."""
_SCRATCH = ".dwmgrad-build-"


def load(source: Path, prepare: Callable[[ctypes.CDLL], None]) -> ctypes.CDLL:
    """The library of a C file: the one in the cache, or a new one.

    Args:
        source: uses OpenMP, and finds it in this process.
        prepare: raises OSError for a library that does not do what it should.

    Raises:
        OSError, ValueError: if there is none to be had; the message says why.
    """
    compiler = _compiler()
    # a home may be shared by machines of different kinds
    kind = [source.read_text("utf-8"), *compiler, *_FLAGS, platform.machine(), _cpu_flags()]
    digest = hashlib.sha256("\0".join(kind).encode(errors="surrogateescape")).hexdigest()
    name = f"{source.stem}-{digest[:16]}.so"
    folder = _cache_folder()
    if folder is not None:
        with contextlib.suppress(OSError):
            if _is_ours_and_whole(folder / name):
                return _opened(folder / name, prepare)
    with _scratch(folder or Path(tempfile.gettempdir())) as scratch:
        built = scratch / name
        _compile(compiler, source, built)
        # before it gets its name: by a name that it knows, the loader gives the old library
        library = _opened(built, prepare)
        if folder is not None:
            with contextlib.suppress(OSError):
                os.replace(built, folder / name)  # at once, whoever else builds it now
    return library


def _opened(path: Path, prepare: Callable[[ctypes.CDLL], None]) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise OSError(
            f"{error}; if programs may not be run from there, set XDG_CACHE_HOME to a folder from "
            "which they may"
        ) from error
    prepare(library)
    return library


# ---- the compiler ----


def _compiler() -> list[str]:
    command = os.environ.get("CC", "").strip() or shutil.which("gcc") or shutil.which("cc")
    if command is None or os.name == "nt":  # all below asks for POSIX
        raise OSError("no C compiler found")
    # a path with blanks, or a command with arguments, such as "ccache gcc"
    return [command] if shutil.which(command) else shlex.split(command)


def _compile(compiler: list[str], source: Path, built: Path) -> None:
    # compiled with OpenMP but linked without: PyTorch has brought its own library
    _run([*compiler, *_FLAGS, "-c", str(source), "-o", f"{built}.o"], built.parent)
    _run([*compiler, "-shared", f"{built}.o", "-o", str(built), "-lm"], built.parent)
    if not built.is_file():
        raise OSError(f"{shlex.join(compiler)} wrote nothing")
    built.chmod(0o700)  # whatever the umask
    content = built.read_bytes()
    built.write_bytes(content + hashlib.sha256(content).digest())  # the loader does not mind


def _run(command: list[str], scratch: Path) -> None:
    process: subprocess.Popen[bytes] | None = None
    try:
        with _interrupts_wait():  # until it is known whom to end
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(scratch), "LC_ALL": "C"},
                start_new_session=True,  # so that its children can be ended with it
            )
        said, _ = process.communicate(timeout=_PATIENCE)
    except BaseException as error:  # Ctrl-C, too
        if process is not None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise OSError(f"{command[0]} took more than {_PATIENCE:.0f} s") from None
        raise
    if process.returncode != 0:
        lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
        lines = [line for line in lines if "error" in line] or [*filter(None, lines)]
        said_last = f": {lines[-1][:300]}" if lines else ""
        raise OSError(f"{command[0]} ended with {process.returncode}{said_last}")


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Not by a mask: another thread may take the signal, and the main one is told of it."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield  # no interrupt is raised here
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)


def _cpu_flags() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()


# ---- the cache ----


def _cache_folder() -> Path | None:
    """The folder of this user alone; None where there is none that can be written.

    Raises:
        OSError: if others may write into it.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        is_named = base.is_absolute()  # else it does not count, says the standard
        if not is_named:
            base = Path(os.environ.get("HOME", Path.home())) / ".cache"
        if not base.is_absolute():
            return None
        base.mkdir(mode=0o700, parents=is_named, exist_ok=True)  # a missing home is not made
        folder = base / "dwmgrad"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # the second where the user has no home at all
        return None
    if status.st_uid != os.getuid() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return None
    if status.st_mode & 0o022:
        raise OSError(f"others may write into {folder}: chmod go-w {folder}")
    return folder


def _is_ours_and_whole(path: Path) -> bool:
    status = path.lstat()
    is_ours = status.st_uid == os.getuid() and not status.st_mode & 0o022
    if not (is_ours and stat.S_ISREG(status.st_mode)):
        return False
    content = path.read_bytes()
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    """A folder for one build; those of builds that were killed are removed first."""
    for left in place.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            status = left.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > 20 * _PATIENCE:
                shutil.rmtree(left)
    made = tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place, ignore_cleanup_errors=True)
    with made as folder:
        yield Path(folder)
