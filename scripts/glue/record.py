"""The record of a run in its folder: whether another run may go on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import atomic
from transformers import TrainingArguments

from glue.checkpoints import checkpoints, has, lacks, passed_over, unusable
from glue.errors import UsageError

RECORD = ".run_arguments.json"
_ENDED = "ended_after_steps"  # in the record, once all of the training's results are written


def write_json(path: Path, values: Any) -> None:
    """In one step: a kill leaves the old file or the new one."""
    atomic.write_json(path, values, indent=4, sort_keys=True, allow_nan=True)


def write_record(folder: Path, record: dict[str, Any], ended_after: int | None = None) -> None:
    """Leaves a run's identity in its folder, in one step; `ended_after`: its last one."""
    end = {} if ended_after is None else {_ENDED: ended_after}
    write_json(folder / RECORD, {**record, **end})


def is_complete(folder: Path, record: dict[str, Any], steps: int) -> bool:
    """Whether `folder` has all that this run's training leaves after so many steps."""
    return (
        read_record(folder) == {**record, _ENDED: steps}
        and (folder / "trainer_state.json").is_file()
        and has(folder, "the weights")
    )


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None where no run has begun.

    Raises:
        UsageError: it is damaged.
    """
    path = folder / RECORD
    try:
        return read_object(path) if path.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: the record of the run there cannot be read ({error or 'too deep'}); if the "
            "run is the same, remove this file and its checkpoints are gone on from; else give "
            "another --output_dir, or --overwrite_output_dir to train afresh"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it holds {found!r:.40}")
    return found


def checkpoint_to_resume(training: TrainingArguments, folder: Path) -> Path | None:
    """Where training starts from: --resume_from_checkpoint, or the last one in `folder`.

    Raises:
        UsageError: the checkpoint does not exist, or lacks something; or the folder holds files,
            but no checkpoint.
    """
    given = training.resume_from_checkpoint
    if _is_path(given):
        path = Path(str(given))
        if not training.do_train:
            raise UsageError(
                f"--resume_from_checkpoint {given}: needs --do_train; to evaluate its weights give "
                "it as --model_name_or_path"
            )
        if not path.is_dir():
            raise UsageError(f"--resume_from_checkpoint {given}: no such folder")
        if missing := lacks(path):
            raise unusable(path, f"it lacks {', '.join(missing)}")
        return path
    if not _goes_on_by_itself(training):
        return None
    if training.process_index == 0:
        for path, wanting in passed_over(folder).items():
            print(f"Not gone on from: {path}, as it lacks {wanting}")
    if found := checkpoints(folder):
        if given and not _wants_last(training):
            raise UsageError(
                f"--resume_from_checkpoint {given}: {found[-1]} would be lost; give "
                "--overwrite_output_dir to train afresh, or leave it out to go on from there"
            )
        return found[-1]
    if _wants_last(training):
        raise UsageError(f"--resume_from_checkpoint {given}: no whole checkpoint-* in {folder}")
    if training.process_index == 0:
        _refuse_what_would_be_lost(folder)
    return None


def _refuse_what_would_be_lost(folder: Path) -> None:
    """Nothing is where a run was killed before its first checkpoint was whole."""
    there = read_record(folder)
    if there is not None and not has_ended(folder):
        return
    # another rank's write test begins with a dot, and the lock with an underscore
    files = sorted(path.name for path in folder.iterdir() if path.name[0] not in "._")
    if files:
        holds = "its run has ended" if there else f"not empty ({', '.join(files[:3])} ...)"
        kind = "adapter" if (folder / "adapter_config.json").is_file() else "model"
        weights = f", or --{kind}_name_or_path {folder} --do_train false to evaluate its weights"
        raise UsageError(
            f"--output_dir {folder}: {holds} and without a checkpoint; give "
            f"--overwrite_output_dir to train afresh, or another folder{weights if there else ''}"
        )


def check_same_run(training: TrainingArguments, folder: Path, record: dict[str, Any]) -> None:
    """A run goes on, by itself, from its own checkpoints alone.

    Raises:
        UsageError: the folder's run has another `identity`.
    """
    if not _goes_on_by_itself(training):
        return
    there, found = read_record(folder), checkpoints(folder)
    if there is None or (not found and has_ended(folder)):
        return
    if changed := differences(there, record):
        raise UsageError(
            f"--output_dir {folder}: holds a run with other arguments ({'; '.join(changed)}); "
            "give another folder, or --overwrite_output_dir to train afresh, or "
            f"--resume_from_checkpoint {found[-1] if found else 'FOLDER'} to go on from one all "
            "the same"
        )


def differences(there: dict[str, Any], record: dict[str, Any]) -> list[str]:
    return [f"{k} {there[k]} there, {v} here" for k, v in record.items() if there.get(k, v) != v]


def _is_path(given: Any) -> bool:
    return bool(given) and str(given).lower() not in ("true", "1", "false")


def _goes_on_by_itself(training: TrainingArguments) -> bool:
    afresh = getattr(training, "overwrite_output_dir", False) and not _wants_last(training)
    return training.do_train and not afresh and not _is_path(training.resume_from_checkpoint)


def _wants_last(training: TrainingArguments) -> bool:
    return str(training.resume_from_checkpoint).lower() in ("true", "1")


def has_ended(folder: Path) -> bool:
    """Whether a run's training came to its end there; a kill may have kept its figures back."""
    return (folder / "train_results.json").exists() or _ENDED in (read_record(folder) or {})
