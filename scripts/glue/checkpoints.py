"""Checkpoints that a kill cannot spoil: one counts once every rank has written all of it."""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer

from glue.errors import UsageError

logger = logging.getLogger(__name__)

_WHOLE = ".whole"
"""The empty file that a checkpoint gets last; appearing is one step, writing would be many."""

_STATES = ("rng_state*.pth", "random_states_*.pkl")  # which torch.save writes: zip files
_DEEPSPEED = "global_step* pytorch_model"
_NEEDED = {
    "the weights": "*.safetensors adapter_model.bin pytorch_model*.bin pytorch_model_fsdp_* "
    + _DEEPSPEED,
    "the optimizer's state": f"optimizer.pt optimizer*.bin optimizer_* {_DEEPSPEED}",
    "the scheduler's state": f"scheduler.pt scheduler*.bin custom_checkpoint_*.pkl {_DEEPSPEED}",
    "the random states": " ".join(_STATES),
    "trainer_state.json": "trainer_state.json",
}
"""What a run needs to go on: the files or folders of the Trainer and of Accelerate, with FSDP and
DeepSpeed. One of each must be there."""


def checkpoints(folder: Path) -> list[Path]:
    """The whole `checkpoint-STEP` folders that a run can go on from, by step."""
    return [path for path in written(folder) if not lacks(path)]


def written(folder: Path) -> list[Path]:
    """The `checkpoint-STEP` folders that every rank has written, by step: also those without the
    optimizer's state, as --save_only_model makes them."""
    return [path for path in _all(folder) if (path / _WHOLE).is_file()]


def passed_over(folder: Path) -> dict[Path, str]:
    """The `checkpoint-STEP` folders that no run goes on from by itself, and what each lacks."""
    wanting = {path: lacks(path) for path in _all(folder)}
    for path in set(wanting) - {*written(folder)}:
        wanting[path].append(f"{_WHOLE}, the mark of one that this script has written to its end")
    return {path: ", ".join(missing) for path, missing in wanting.items() if missing}


def lacks(checkpoint: Path) -> list[str]:
    """What a run would need to go on from a folder, and is not there."""
    missing = [name for name in _NEEDED if not has(checkpoint, name)]
    # Accelerate passes over random states that it cannot read, and the run would end otherwise
    states = [path for name in _STATES for path in sorted(checkpoint.glob(name))]
    missing += [f"the end of {path.name}" for path in states if not zipfile.is_zipfile(path)]
    return missing + _missing_shards(checkpoint)


def has(folder: Path, need: str) -> bool:
    """Whether one of the needs above, such as "the weights", is in `folder`."""
    found = (path for pattern in _NEEDED[need].split() for path in folder.glob(pattern))
    return any(map(_has_content, found))


def steps_done(checkpoint: Path | None) -> int:
    """The optimizer steps behind a checkpoint; 0 without one.

    Raises:
        UsageError: it is not a checkpoint.
    """
    if checkpoint is None:
        return 0
    try:
        steps = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["global_step"]
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"global_step is {steps!r:.40}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise unusable(checkpoint, f"trainer_state.json: {error}") from error
    return steps


def check_script(checkpoint: Path | None, script: str) -> None:
    """The two scripts do not read each other's: the bare loop's has the losses since a log.

    Raises:
        UsageError: it is a checkpoint of the other one.
    """
    if checkpoint is None:
        return
    bare = "loss_since_log" in (checkpoint / "trainer_state.json").read_text("utf-8")
    wrote = "run_glue_no_trainer.py" if bare else "run_glue.py"
    if wrote != script:
        raise unusable(checkpoint, f"it is a checkpoint of {wrote}")


def unusable(checkpoint: Path, error: Exception | str) -> UsageError:
    """For a checkpoint that cannot be loaded: the reason in one line, and the remedy."""
    reason = " ".join((str(error).strip() or repr(error)).splitlines()[0].split())
    return UsageError(
        f"--resume_from_checkpoint {checkpoint}: cannot be gone on from ({reason}); give another "
        "one, or move it away to go on from the one before it"
    )


def begin(checkpoint: Path, writes: bool) -> None:
    """Every rank calls it before its first file: what an older run left in the folder goes.

    Args:
        checkpoint: its folder.
        writes: whether this rank is the one that writes to the folder.
    """
    if writes:
        forget_later(checkpoint.parent, _step(checkpoint) - 1)
        if checkpoint.is_dir() and not checkpoint.is_symlink():
            shutil.rmtree(checkpoint, ignore_errors=True)
        elif checkpoint.is_symlink():
            checkpoint.unlink()
        elif checkpoint.exists():  # a file of the user's, perhaps
            checkpoint.replace(checkpoint.with_name(f"{checkpoint.name}.file"))
    PartialState().wait_for_everyone()


def forget_later(folder: Path, steps: int) -> None:
    """A run goes on after `steps` steps: what an older run left beyond them does not count."""
    for path in _all(folder):
        if _step(path) > steps:
            _forget(path)


def finish(
    checkpoint: Path, writes: bool, keep: int | None = None, best: Path | None = None
) -> None:
    """Every rank calls it after its last file: the checkpoint counts, older ones go.

    Args:
        checkpoint, writes: as for `begin`.
        keep: how many written checkpoints stay, the newest; None: all.
        best: one that stays in any case.
    """
    PartialState().wait_for_everyone()
    if not writes:
        return
    if missing := lacks(checkpoint):
        logger.warning(
            "%s: no run can go on from it, as it lacks %s", checkpoint, ", ".join(missing)
        )
    (checkpoint / _WHOLE).touch()
    stays = {checkpoint.resolve(), *([best.resolve()] if best else [])}
    found = written(checkpoint.parent)
    surplus = len(found) - max(keep, len(stays)) if keep and keep > 0 else 0  # as the Trainer
    for path in [path for path in found if path.resolve() not in stays][: max(0, surplus)]:
        _forget(path)  # first, lest half a checkpoint counts
        shutil.rmtree(path, ignore_errors=True)


class WholeCheckpointTrainer(Trainer):
    """The Trainer, whose checkpoints count once they are whole; old ones go only then.

    The Trainer itself removes old ones before other ranks have written all of the new one, so its
    `save_total_limit` is taken over here.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._keep, self.args.save_total_limit = self.args.save_total_limit, None
        if self.args.save_on_each_node:  # transformers 5 writes the weights on rank 0 alone
            model: Any = self.model
            model.should_save_on_this_rank = lambda is_main_process: is_main_process

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir or "") / f"checkpoint-{self.state.global_step}"
        begin(folder, self.args.should_save)
        super()._save_checkpoint(model, trial)
        best = self.state.best_model_checkpoint
        finish(folder, self.args.should_save, self._keep, Path(best) if best else None)


def _all(folder: Path) -> list[Path]:
    """Named as the Trainer names them; checkpoint-007 is somebody's copy."""
    named = re.compile("checkpoint-(0|[1-9][0-9]*)").fullmatch
    found = (p for p in folder.glob("checkpoint-*") if p.is_dir() and named(p.name))
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _forget(checkpoint: Path) -> None:
    """It no longer counts; of a link to a folder elsewhere the link goes, and no more."""
    if checkpoint.is_symlink():
        checkpoint.unlink()
    else:
        (checkpoint / _WHOLE).unlink(missing_ok=True)


def _has_content(path: Path) -> bool:
    try:
        return any(path.iterdir()) if path.is_dir() else path.stat().st_size > 0
    except OSError:  # a link to nowhere
        return False


def _missing_shards(checkpoint: Path) -> list[str]:
    """Of weights in several files, those that the files' own names speak of."""
    wanted = set()
    for path in checkpoint.iterdir():
        if each := re.fullmatch(r"(.+)-\d+-of-(\d+)(\.\w+)", path.name):
            numbers = range(1, min(int(each[2]), 10_000) + 1)
            wanted |= {f"{each[1]}-{number:05}-of-{each[2]}{each[3]}" for number in numbers}
    return sorted(name for name in wanted if not (checkpoint / name).is_file())
