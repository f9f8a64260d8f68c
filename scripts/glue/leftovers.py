"""What earlier runs left in the output folder: removed, set aside, or not to be mixed with."""

from __future__ import annotations

from pathlib import Path

from glue.checkpoints import checkpoints
from glue.errors import UsageError
from glue.parsing import Arguments
from glue.record import RECORD, differences, has_ended, read_object, read_record
from glue.tasks import Task

_RESULTS = [f"{name}_results.json" for name in ("all", "train", "eval", "predict")]
_LEFT = """
    model.safetensors model-*-of-*.safetensors pytorch_model.bin pytorch_model-*-of-*.bin
    model.safetensors.index.json pytorch_model.bin.index.json adapter_config.json adapter_model.*
    README.md window.png merged/* predictions/test.tsv submission/*.tsv
""".split()
"""What a run leaves beside its figures, and the next one in its folder might not write over."""


def remove_results(folder: Path) -> None:
    """A run starts: nothing of another one stays, with which its own would be mixed.

    Of an adapter and a full model in one folder, transformers would load both. In a folder without
    a run's record, files of these names may be the user's own.
    """
    names = (*_RESULTS, *_LEFT) if (folder / RECORD).exists() else _RESULTS
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
    if args.training.do_train or (there := read_record(folder)) is None:
        return
    model = args.lora.adapter_name_or_path or args.model.model_name_or_path
    changed, remedy = differences(there, {"task_name": task.name}), ""
    if not _is_left_in(folder, model):
        if not changed:
            kind = "adapter" if (folder / "adapter_config.json").exists() else "model"
            remedy = f" For the model that was trained there give --{kind}_name_or_path {folder}"
        changed.append(f"model {model} here")
    if changed:
        raise UsageError(
            f"--output_dir {folder}: holds a run with other arguments ({'; '.join(changed)}), and "
            f"its results would be mixed with these; give another folder.{remedy}"
        )


def remove_figures(folder: Path) -> None:
    """Those of an older evaluation, where no run was trained: they may be of another model."""
    if read_record(folder) is None and not has_ended(folder):
        (folder / "all_results.json").unlink(missing_ok=True)


def _is_left_in(folder: Path, path: str | None) -> bool:
    """Whether a model's path is that of the model of the run in `folder`."""
    places = folder.resolve(), (folder / "merged").resolve()
    return path is not None and Path(path).resolve() in places


def set_aside_damaged(folder: Path) -> None:
    """What a kill left half written is kept under another name: the Trainer adds to these files."""
    for path in (folder / name for name in _RESULTS if (folder / name).is_file()):
        try:
            read_object(path)
        except (ValueError, RecursionError) as error:
            kept = path.replace(path.with_name(f"{path.name}.damaged"))
            print(f"{path} is damaged ({error}); kept as {kept.name}")
