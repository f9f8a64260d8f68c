"""Checkpoints that a kill cannot spoil: one counts once every rank has written all of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer

from dwmgrad.glue.errors import UsageError

_WHOLE = ".whole"
"""The empty file that a checkpoint gets last; appearing is one step, writing would be many."""


def checkpoints(folder: Path) -> list[Path]:
    """The whole `checkpoint-STEP` folders, by step."""
    return [path for path in _all(folder) if (path / _WHOLE).is_file()]


def steps_done(checkpoint: Path | None) -> int:
    """The optimizer steps behind a checkpoint; 0 without one.

    Raises:
        UsageError: it is not a checkpoint.
    """
    if checkpoint is None:
        return 0
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"--resume_from_checkpoint {checkpoint}: not a checkpoint ({error})"
        ) from error


def begin(checkpoint: Path) -> None:
    """Every rank calls it before its first file: what an older run left in the folder goes."""
    state = PartialState()
    if state.is_local_main_process:
        forget_later(checkpoint.parent, _step(checkpoint) - 1)
        shutil.rmtree(checkpoint, ignore_errors=True)
    state.wait_for_everyone()


def forget_later(folder: Path, steps: int) -> None:
    """A run goes on after `steps` steps: what an older run left beyond them does not count."""
    for path in _all(folder):
        if _step(path) > steps:
            (path / _WHOLE).unlink(missing_ok=True)


def finish(
    checkpoint: Path, keep: int | None = None, best: Path | None = None, each_node: bool = False
) -> None:
    """Every rank calls it after its last file: the checkpoint counts, older ones go.

    Args:
        checkpoint: its folder.
        keep: how many whole checkpoints stay, the newest; None: all.
        best: one that stays in any case.
        each_node: whether every machine has a folder of its own.
    """
    state = PartialState()
    state.wait_for_everyone()
    if not (state.is_local_main_process if each_node else state.is_main_process):
        return
    (checkpoint / _WHOLE).touch()
    stays = {checkpoint.resolve(), *([best.resolve()] if best else [])}
    found = checkpoints(checkpoint.parent)
    surplus = len(found) - max(keep, len(stays)) if keep else 0
    for path in [path for path in found if path.resolve() not in stays][: max(0, surplus)]:
        (path / _WHOLE).unlink()  # first, lest half a checkpoint counts
        shutil.rmtree(path, ignore_errors=True)


class WholeCheckpointTrainer(Trainer):
    """The Trainer, whose checkpoints count once they are whole; old ones go only then.

    The Trainer itself removes old ones before other ranks have written all of the new one, so its
    `save_total_limit` is taken over here.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._keep, self.args.save_total_limit = self.args.save_total_limit, None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir or "") / f"checkpoint-{self.state.global_step}"
        begin(folder)
        super()._save_checkpoint(model, trial)
        best = self.state.best_model_checkpoint
        finish(folder, self._keep, Path(best) if best else None, self.args.save_on_each_node)


def _all(folder: Path) -> list[Path]:
    found = folder.glob("checkpoint-*")
    return sorted((p for p in found if re.fullmatch(r"checkpoint-\d+", p.name)), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
