"""The output folder: can it be written, by all machines, until the end."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainingArguments

from glue.checkpoints import checkpoints
from glue.errors import UsageError

_TORCH = "PytorchStreamWriter failed", ". unexpected pos "  # from torch.save
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


def check_output(folder: str | None) -> Path:
    """Make `folder` and prove that a file can be written there.

    Raises:
        UsageError: it cannot.
    """
    path = Path(folder or "")
    if not (folder or "").strip():
        raise UsageError(f"--output_dir {folder!r}: give a folder for the results")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, prefix=".write-test") as file:
            file.write(bytes(2**20))  # on a full disk, an empty file can still be made
            file.flush()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--output_dir {folder}: cannot be written: {reason}") from error
    return path


def check_machines(training: TrainingArguments, folder: Path) -> None:
    """All machines of a launch share the folder, or each has its own: as --save_on_each_node says.

    Raises:
        UsageError: on every rank, if it is otherwise.
    """
    state = PartialState()
    [launch] = broadcast_object_list([uuid.uuid4().hex])
    marks = [folder / f".{launch}-{rank}" for rank in range(state.num_processes)]
    mine = marks[state.process_index]
    try:
        if state.is_local_main_process:
            with contextlib.suppress(OSError):  # its machine has no mark then, as on another disk
                mine.touch()
        state.wait_for_everyone()
        seen = gather_object([(mine.exists(), sum(mark.exists() for mark in marks))])
    finally:
        mine.unlink(missing_ok=True)
    machines = sum(is_first for is_first, _ in seen)
    counts = {count for _, count in seen}
    if training.save_on_each_node and counts != {1}:
        raise UsageError(
            f"--save_on_each_node: machines share --output_dir {folder}, and would write the same "
            "files there; leave it out"
        )
    saves = training.do_train and training.save_strategy != "no"
    if saves and not training.save_on_each_node and counts != {machines}:
        raise UsageError(
            f"--output_dir {folder}: the machines do not share it, so no run could go on from its "
            "checkpoints; give a folder that they share, or --save_on_each_node"
        )


@contextlib.contextmanager
def clear_write_errors(folder: Path) -> Iterator[None]:
    """A full disk or a folder that turned read-only ends the run with one line.

    Raises:
        UsageError: names the folder, the cause, and what the run goes on from.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if not _is_about_writing(error, folder):
            raise
        try:
            whole, free = checkpoints(folder), f"{shutil.disk_usage(folder).free / 2**20:,.1f} MiB"
        except OSError:
            whole, free = [], "an unknown space"
        rest = f"from {whole[-1].name}" if whole else "from the start: no checkpoint is whole yet"
        raise UsageError(
            f"--output_dir {folder}: writing failed, with {free} free on its disk ({error}); make "
            f"it writable or make room, and the same command goes on {rest}"
        ) from error


def _is_about_writing(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in _DISK:
        name = error.filename
        return name is None or Path(str(name)).resolve().is_relative_to(folder.resolve())
    said = str(error)  # torch's and safetensors' own errors have no number
    number = re.search(r"\(os error (\d+)\)", said)
    if any(map(said.__contains__, _TORCH)) or (number and int(number[1]) in _DISK):
        return True
    try:  # can a file be written now?
        check_output(str(folder))
    except UsageError:
        return True
    return False
