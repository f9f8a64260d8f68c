"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from glue.errors import UsageError


def write_json(path: Path, values: Any, **options: Any) -> None:
    """As `write_text`, with the options of `json.dumps`; by default NaN is refused."""
    write_text(path, json.dumps(values, **{"indent": 1, "allow_nan": False, **options}) + "\n")


def check_output(path: Path, option: str = "--output") -> None:
    """Raise a UsageError, before any work, if `path`, of that option, cannot be written."""
    trial = path.parent / f".{path.name}.trial"
    try:
        if path.is_dir() or not path.name:
            raise IsADirectoryError(0, "it is a folder")
        write_text(trial, "")
        trial.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{option} {path}: cannot be written: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Write all or nothing: a reader, or the next run, never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
