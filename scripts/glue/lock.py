"""One run at a time in a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from glue.errors import UsageError

logger = logging.getLogger(__name__)

_NAME = "_lock"  # the Trainer uploads nothing that begins with an underscore
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_UNABLE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_CANNOT_LOCK = "%s: its file system cannot lock (%s): see that no other run writes there"
_held: set[int] = set()


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds `folder` for this run: all ranks of one launch share it, on every machine.

    The system takes the lock back when the process ends, with SIGKILL too. A file system that
    cannot lock costs a warning.

    Raises:
        UsageError: on every rank, if another run holds it.
    """
    state = PartialState()
    [launch] = broadcast_object_list([uuid.uuid4().hex])
    holds, refusal = None, None
    others = state.is_local_main_process and not state.is_main_process
    try:
        for turn in (state.is_main_process, others):
            if turn:  # machines that do not share the folder have a lock each
                holds, refusal = _take(folder, launch)
            state.wait_for_everyone()
        if refusals := [each for each in gather_object([refusal]) if each]:
            raise UsageError(refusals[0])
        yield
    finally:
        if holds is not None:
            _release(folder / _NAME, holds)


def _take(folder: Path, launch: str) -> tuple[int | None, str | None]:
    """The lock's file descriptor, or why there is none (both None: it is not needed)."""
    path = folder / _NAME
    try:
        mode = os.O_RDONLY  # a file open for writing would keep its disk from turning read-only
        while True:
            file = os.open(path, mode | os.O_CREAT, 0o666)
            try:
                _lock(file)
            except OSError as error:
                if error.errno == errno.EBADF and mode == os.O_RDONLY:  # NFS wants it for writing
                    mode = os.O_RDWR
                    os.close(file)
                    continue
                holder = _holder(file)
                os.close(file)
                if error.errno in _TAKEN:
                    same = holder.get("launch") == launch
                    return None, None if same else _refusal(folder, holder)
                if error.errno in _UNABLE:
                    logger.warning(_CANNOT_LOCK, folder, error.strerror)
                    return None, None
                raise
            if _still_there(file, path):
                break
            os.close(file)  # its last holder has just removed it
        _held.add(file)
        who = {"pid": os.getpid(), "host": socket.gethostname(), "launch": launch}
        who["since"] = datetime.datetime.now().isoformat(" ", "seconds")
        path.write_text(json.dumps(who), encoding="utf-8")
        return file, None
    except OSError as error:
        return None, f"--output_dir {folder}: cannot be written: {error.strerror or error}"


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    who = "another process"
    if holder:
        who = "process {pid} on {host}, since {since}".format(**holder)
    return (
        f"--output_dir {folder}: a run is at work there ({who}); wait for its end, or give another "
        "folder"
    )


def _holder(file: int) -> dict[str, Any]:
    """What the holder wrote; nothing if it has not yet."""
    try:
        found = json.loads(os.pread(file, 4096, 0) if hasattr(os, "pread") else b"{}")
        return found if {"pid", "host", "since"} <= found.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _still_there(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _release(path: Path, file: int) -> None:
    with contextlib.suppress(OSError):
        if os.name != "nt":  # there a file that is open cannot be removed
            os.unlink(path)
    _held.discard(file)
    os.close(file)


def _let_go() -> None:
    """A child that outlives the run, such as a data loader's worker, does not keep its lock."""
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


if os.name == "nt":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 2**20, os.SEEK_SET)  # beyond the text, which stays readable
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        os.lseek(file, 0, os.SEEK_SET)
else:
    import fcntl

    os.register_at_fork(after_in_child=_let_go)

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
