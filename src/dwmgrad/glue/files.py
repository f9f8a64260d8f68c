"""Rows from local files: parquet, csv, tsv, jsonl, json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dwmgrad.glue.errors import UsageError

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")


def find_split(folder: Path, split: str) -> list[Path]:
    """The file (or parquet shards) of `split` in `folder`; `dev` stands for `validation`.

    Raises:
        UsageError: there is none; the message lists what the folder holds.
    """
    names = [split]
    if split.startswith("validation"):
        names += [
            split.replace("validation", "dev"),
            split.replace("validation", "val"),
        ]
    for name in names:
        for suffix in SUFFIXES:
            path = folder / f"{name}{suffix}"
            if path.is_file():
                return [path]
        shards = sorted(folder.glob(f"{name}-*-of-*.parquet"))
        if shards:
            return shards
    found = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_file())) or "no files"
    raise UsageError(
        f"--data_dir: no {split} split in {folder}: expected {split} as one of "
        f"{', '.join(SUFFIXES)}; found {found}"
    )


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The file's columns. In csv and tsv files every value is a string, as written.

    Raises:
        UsageError: the file cannot be read, or is not what its ending says.
    """
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(path).to_pydict()
        if path.suffix in (".csv", ".tsv"):
            import pandas

            # GLUE's tab-separated files quote nothing: a quotation mark there is text
            quoting = {"sep": "\t", "quoting": 3} if path.suffix == ".tsv" else {}
            frame = pandas.read_csv(path, dtype=str, keep_default_na=False, **quoting)
            return {str(name): frame[name].tolist() for name in frame.columns}
        return _read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        if "No columns to parse" in reason:
            reason = "the file is empty"
        raise UsageError(f"--data_dir: cannot read {path}: {reason}") from error


def _read_json(text: str) -> dict[str, list[Any]]:
    """An array of objects, or one object per line."""
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected one object per example")
    names = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}
