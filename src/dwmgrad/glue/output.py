"""The output folder: may it be written, and is there a run in it to go on with."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from dwmgrad.glue.checkpoints import checkpoints
from dwmgrad.glue.errors import UsageError

_RECORD = ".run_arguments.json"
NOTHING_LEFT = "The checkpoint is the run's end; --overwrite_output_dir trains it afresh"


def check_output(folder: str | None) -> Path:
    """Make `folder` and prove that a file can be written there.

    Raises:
        UsageError: it cannot.
    """
    path = Path(folder or "")
    if not folder:
        raise UsageError("--output_dir is missing: give a folder for the results")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, prefix=".write-test") as file:
            file.write(bytes(2**16))  # on a full disk, an empty file can still be made
            file.flush()
    except OSError as error:
        raise UsageError(
            f"--output_dir {folder}: cannot be written: {error.strerror or error}"
        ) from error
    return path


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


_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


def _is_about_writing(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError):
        name = error.filename
        inside = name is None or Path(str(name)).resolve().is_relative_to(folder.resolve())
        return inside and error.errno in _NUMBERS
    text = str(error)  # torch and safetensors have their own errors
    ours = ("inline_container.cc", "PytorchStreamWriter")
    return any(part in text for part in (*ours, *(f"os error {each})" for each in _NUMBERS)))


def identity(training: TrainingArguments, script: str) -> dict[str, Any]:
    """What must be equal for a run to go on from another's checkpoint by itself."""
    names = (
        "optim",
        "optim_args",
        "learning_rate",
        "weight_decay",
        "lr_scheduler_type",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "seed",
    )
    values = {name: getattr(training, name) for name in names}
    values["world_size"] = training.world_size  # more ranks, larger batches
    return {"script": script} | {k: getattr(v, "value", v) for k, v in values.items()}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Leaves a run's identity in its folder, in one step."""
    draft = folder / f"{_RECORD}.draft"
    draft.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    draft.replace(folder / _RECORD)


def checkpoint_to_resume(
    training: TrainingArguments, folder: Path, record: dict[str, Any]
) -> Path | None:
    """Where training starts from: --resume_from_checkpoint, or the last one in `folder`.

    Raises:
        UsageError: the checkpoint does not exist; the folder holds files, but no checkpoint; or
            its checkpoints are of a run with another `identity`.
    """
    given = training.resume_from_checkpoint
    wants_last = str(given).lower() in ("true", "1")
    if given and not wants_last and str(given).lower() != "false":
        if not Path(given).is_dir():
            raise UsageError(f"--resume_from_checkpoint {given}: no such folder")
        return Path(given)
    if not training.do_train or (
        getattr(training, "overwrite_output_dir", False) and not wants_last
    ):
        return None
    checkpoint = next(reversed(checkpoints(folder)), None)
    recorded = (folder / _RECORD).is_file()
    # killed before its first checkpoint was whole: there is nothing to lose
    just_begun = recorded and checkpoint is None and not (folder / "train_results.json").exists()
    if recorded and (checkpoint is not None or just_begun):
        there = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        changed = [
            f"{k} {there[k]} there, {v} here" for k, v in record.items() if there.get(k, v) != v
        ]
        if changed:
            raise UsageError(
                f"--output_dir {folder}: holds a run with other arguments ({'; '.join(changed)}); "
                "give another folder, or --overwrite_output_dir to train afresh, or "
                f"--resume_from_checkpoint {checkpoint or 'FOLDER'} to go on from one all the same"
            )
    if checkpoint is None and wants_last:
        raise UsageError(f"--resume_from_checkpoint {given}: no checkpoint-* folder in {folder}")
    if checkpoint is None and not just_begun and training.process_index == 0:
        # files that begin with a dot may be another rank's write test
        files = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if files:
            raise UsageError(
                f"--output_dir {folder}: not empty ({', '.join(files[:3])} ...) and without a "
                "checkpoint; give --overwrite_output_dir or another folder"
            )
    if checkpoint is not None:
        print(f"Resuming from {checkpoint}; --overwrite_output_dir starts afresh")
    return checkpoint
