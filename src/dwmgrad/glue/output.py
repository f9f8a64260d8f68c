"""The output folder: may it be written, and is there a run in it to go on with."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from transformers import TrainingArguments

from dwmgrad.glue.errors import UsageError


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
        with tempfile.TemporaryFile(dir=path, prefix=".write-test"):
            pass
    except OSError as error:
        raise UsageError(
            f"--output_dir {folder}: cannot be written: {error.strerror or error}"
        ) from error
    return path


def last_checkpoint(folder: Path) -> Path | None:
    """The `checkpoint-STEP` folder with the highest step."""
    found = [
        (int(match[1]), path)
        for path in folder.glob("checkpoint-*")
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    ]
    return max(found)[1] if found else None


def checkpoint_to_resume(training: TrainingArguments, folder: Path) -> Path | None:
    """Where training starts from: --resume_from_checkpoint, or the last one in `folder`.

    Raises:
        UsageError: the checkpoint does not exist; or the folder holds files, but no checkpoint,
            and --overwrite_output_dir was not given.
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
    checkpoint = last_checkpoint(folder)
    if checkpoint is None and wants_last:
        raise UsageError(f"--resume_from_checkpoint {given}: no checkpoint-* folder in {folder}")
    if checkpoint is None and training.process_index == 0:
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
