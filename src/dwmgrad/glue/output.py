"""The output folder: may it be written, and is there a run in it to go on with."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

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
        with tempfile.TemporaryFile(dir=path, prefix=".write-test"):
            pass
    except OSError as error:
        raise UsageError(
            f"--output_dir {folder}: cannot be written: {error.strerror or error}"
        ) from error
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The whole `checkpoint-STEP` folders, by step: both scripts write trainer_state.json last."""
    found = [
        (int(match[1]), path)
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
        and (path / "trainer_state.json").is_file()
    ]
    return [path for _, path in sorted(found)]


def steps_done(checkpoint: Path | None) -> int:
    """The optimizer steps behind a checkpoint; 0 without one."""
    if checkpoint is None:
        return 0
    return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]


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
    return {"script": script} | {k: getattr(v, "value", v) for k, v in values.items()}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Leaves a run's identity in its folder."""
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


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
    if checkpoint is not None and (folder / _RECORD).is_file():
        there = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        changed = [
            f"{k} {there.get(k)} there, {v} here" for k, v in record.items() if there.get(k) != v
        ]
        if changed:
            raise UsageError(
                f"--output_dir {folder}: holds a run with other arguments ({'; '.join(changed)}); "
                "give another folder, or --overwrite_output_dir to train afresh, or "
                f"--resume_from_checkpoint {checkpoint} to go on from it all the same"
            )
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
