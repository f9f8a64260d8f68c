"""Checkpoints that a killed run cannot spoil: one counts once every rank has written all of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

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


def forget_later(folder: Path, steps: int) -> None:
    """A run starts after `steps` steps: what an older run left beyond them does not count."""
    for path in _all(folder):
        if _step(path) > steps:
            (path / _WHOLE).unlink(missing_ok=True)


def finish(checkpoint: Path, keep: int | None = None, best: Path | None = None) -> None:
    """Every rank calls it after its last file: the checkpoint counts, older ones go.

    Args:
        checkpoint: its folder.
        keep: how many whole checkpoints stay, the newest; None: all.
        best: one that stays in any case.
    """
    state = PartialState()
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    (checkpoint / _WHOLE).touch()
    found = checkpoints(checkpoint.parent)
    for path in found[: max(0, len(found) - keep)] if keep else ():
        if path != best:
            (path / _WHOLE).unlink()  # first, lest half a checkpoint counts
            shutil.rmtree(path)


class FinishCheckpoints(TrainerCallback):
    """The Trainer's checkpoints count once they are whole, and old ones go only then.

    The Trainer itself removes old ones before other ranks have written all of the new one, so its
    `save_total_limit` is taken over.
    """

    def __init__(self, training: Any) -> None:
        self._keep, training.save_total_limit = training.save_total_limit, None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = state.best_model_checkpoint
        finish(
            Path(args.output_dir) / f"checkpoint-{state.global_step}",
            self._keep,
            Path(best) if best else None,
        )


def _all(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("checkpoint-*"))
    return sorted((p for p in found if re.fullmatch(r"checkpoint-\d+", p.name)), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])
