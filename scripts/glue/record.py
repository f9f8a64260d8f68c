"""The run in the output folder: what it left, and whether another one may go on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import atomic
from transformers import TrainingArguments

from glue.checkpoints import checkpoints, has, lacks, passed_over, unusable
from glue.errors import UsageError
from glue.parsing import Arguments
from glue.tasks import Task

_RECORD = ".run_arguments.json"
_RESULTS = [f"{name}_results.json" for name in ("all", "train", "eval", "predict")]
_LEFT = """
    model.safetensors model-*-of-*.safetensors pytorch_model.bin pytorch_model-*-of-*.bin
    model.safetensors.index.json pytorch_model.bin.index.json adapter_config.json adapter_model.*
    README.md window.png merged/* predictions/test.tsv submission/*.tsv
""".split()
"""What a run leaves beside its figures, and the next one in its folder might not write over."""
_ENDED = "ended_after_steps"  # in the record, once all of the training's results are written


def write_json(path: Path, values: Any) -> None:
    """In one step: a kill leaves the old file or the new one."""
    atomic.write_json(path, values, indent=4, sort_keys=True, allow_nan=True)


def write_record(folder: Path, record: dict[str, Any], ended_after: int | None = None) -> None:
    """Leaves a run's identity in its folder, in one step; `ended_after`: its last one."""
    end = {} if ended_after is None else {_ENDED: ended_after}
    write_json(folder / _RECORD, {**record, **end})


def is_complete(folder: Path, record: dict[str, Any], steps: int) -> bool:
    """Whether `folder` has all that this run's training leaves after so many steps."""
    files = [folder / name for name in ("trainer_state.json", "train_results.json")]
    return (
        _read_record(folder) == {**record, _ENDED: steps}
        and all(path.is_file() for path in files)
        and has(folder, "the weights")
    )


def _read_record(folder: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None where no run has begun.

    Raises:
        UsageError: it is damaged.
    """
    path = folder / _RECORD
    try:
        return _read_object(path) if path.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: the record of the run there cannot be read ({error or 'too deep'}); if the "
            "run is the same, remove this file and its checkpoints are gone on from; else give "
            "another --output_dir, or --overwrite_output_dir to train afresh"
        ) from error


def _read_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it holds {found!r:.40}")
    return found


def remove_results(folder: Path) -> None:
    """A run starts: nothing of another one stays, with which its own would be mixed.

    Of an adapter and a full model in one folder, transformers would load both. In a folder without
    a run's record, files of these names may be the user's own.
    """
    names = (*_RESULTS, *_LEFT) if (folder / _RECORD).exists() else _RESULTS
    for path in (path for name in names for path in folder.glob(name)):
        if not path.is_dir() and (path.parent == folder or not path.parent.is_symlink()):
            path.unlink()


def check_source(args: Arguments, folder: Path) -> None:
    """What training starts from must not go with what an older run has left in the folder.

    Raises:
        UsageError: it lies there.
    """
    sources = {"model_name_or_path": args.model, "adapter_name_or_path": args.lora}
    for name, part in sources.items():
        path = getattr(part, name)
        begun = path is not None and Path(path).resolve() in checkpoints(folder.resolve())
        if args.training.do_train and (begun or _is_left_in(folder, path)):
            raise UsageError(
                f"--{name} {path}: training replaces what is in --output_dir {folder}; give "
                "another folder for the results"
            )


def check_evaluated(args: Arguments, folder: Path, task: Task) -> None:
    """The figures and predictions in a run's folder are all its own model's, on its own task.

    Raises:
        UsageError: an evaluation alone would add others to them.
    """
    if args.training.do_train or (there := _read_record(folder)) is None:
        return
    model = args.lora.adapter_name_or_path or args.model.model_name_or_path
    changed = _changed(there, {"task_name": task.name})
    if not _is_left_in(folder, model):
        changed.append(f"model {model} here")
    if changed:
        raise UsageError(
            f"--output_dir {folder}: holds a run with other arguments ({'; '.join(changed)}), and "
            "its results would be mixed with these; give another folder"
        )


def remove_figures(folder: Path) -> None:
    """Those of an older evaluation, where no run was trained: they may be of another model."""
    if _read_record(folder) is None and not _has_ended(folder):
        (folder / "all_results.json").unlink(missing_ok=True)


def _is_left_in(folder: Path, path: str | None) -> bool:
    """Whether a model's path is that of the model of the run in `folder`."""
    places = folder.resolve(), (folder / "merged").resolve()
    return path is not None and Path(path).resolve() in places


def set_aside_damaged(folder: Path) -> None:
    """What a kill left half written is kept under another name: the Trainer adds to these files."""
    for path in (folder / name for name in _RESULTS if (folder / name).is_file()):
        try:
            _read_object(path)
        except (ValueError, RecursionError) as error:
            kept = path.replace(path.with_name(f"{path.name}.damaged"))
            print(f"{path} is damaged ({error}); kept as {kept.name}")


def checkpoint_to_resume(training: TrainingArguments, folder: Path) -> Path | None:
    """Where training starts from: --resume_from_checkpoint, or the last one in `folder`.

    Raises:
        UsageError: the checkpoint does not exist, or lacks something; or the folder holds files,
            but no checkpoint.
    """
    given = training.resume_from_checkpoint
    if _is_path(given):
        return _checkpoint_at(str(given), training)
    if not _goes_on_by_itself(training):
        return None
    if training.process_index == 0:
        for path, missing in passed_over(folder).items():
            print(f"Not gone on from: {path}, as it lacks {missing}")
    if found := checkpoints(folder):
        return found[-1]
    if given and str(given).lower() != "false":
        raise UsageError(f"--resume_from_checkpoint {given}: no whole checkpoint-* in {folder}")
    if training.process_index == 0:
        _refuse_what_would_be_lost(folder)
    return None


def _checkpoint_at(given: str, training: TrainingArguments) -> Path:
    if not training.do_train:
        raise UsageError(
            f"--resume_from_checkpoint {given}: needs --do_train; to evaluate its weights give it "
            "as --model_name_or_path"
        )
    if not Path(given).is_dir():
        raise UsageError(f"--resume_from_checkpoint {given}: no such folder")
    if missing := lacks(Path(given)):
        raise unusable(Path(given), f"it lacks {', '.join(missing)}")
    return Path(given)


def _refuse_what_would_be_lost(folder: Path) -> None:
    """Nothing is where a run was killed before its first checkpoint was whole."""
    there = _read_record(folder)
    if there is not None and not _has_ended(folder):
        return
    # files that begin with a dot may be another rank's write test
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
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
    there, found = _read_record(folder), checkpoints(folder)
    if there is None or (not found and _has_ended(folder)):
        return
    if changed := _changed(there, record):
        raise UsageError(
            f"--output_dir {folder}: holds a run with other arguments ({'; '.join(changed)}); "
            "give another folder, or --overwrite_output_dir to train afresh, or "
            f"--resume_from_checkpoint {found[-1] if found else 'FOLDER'} to go on from one all "
            "the same"
        )


def holds_another(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the run in `folder`, if there is one, has another `identity`."""
    return bool(_changed(_read_record(folder) or {}, record))


def _changed(there: dict[str, Any], record: dict[str, Any]) -> list[str]:
    return [f"{k} {there[k]} there, {v} here" for k, v in record.items() if there.get(k, v) != v]


def _is_path(given: Any) -> bool:
    return bool(given) and str(given).lower() not in ("true", "1", "false")


def _goes_on_by_itself(training: TrainingArguments) -> bool:
    given = training.resume_from_checkpoint
    wants_last = str(given).lower() in ("true", "1")
    afresh = getattr(training, "overwrite_output_dir", False) and not wants_last
    return training.do_train and not afresh and not _is_path(given)


def _has_ended(folder: Path) -> bool:
    return (folder / "train_results.json").exists()
