"""Rows from local files: parquet, csv, tsv, jsonl, json."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glue.configs import no_doubles, refuse_doubles
from glue.errors import UsageError

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".json")
_COLUMN_TWICE = "the column {!r} is there twice; remove one"


def find_split(folder: Path, split: str) -> list[Path]:
    """The file (or all parquet shards) of `split` in `folder`; `dev` stands for `validation`.

    Raises:
        UsageError: there is none, and the message lists what the folder holds; a shard is missing;
            or there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    short = [split.replace("validation", name) for name in ("dev", "val")]
    names = dict.fromkeys([split, *short])
    for name in names:
        for suffix in SUFFIXES:
            path = folder / f"{name}{suffix}"
            if path.is_file():
                return [path]
        if shards := _shards(folder, name):
            return shards
    found = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_file())) or "no files"
    raise UsageError(
        f"--data_dir: no {split} split in {folder}: expected {split} as one of "
        f"{', '.join(SUFFIXES)}; found {found}"
    )


def read_split(
    folder: Path, split: str, needed: Sequence[str] = ()
) -> tuple[dict[str, list[Any]], Path]:
    """The columns of `split` in `folder`, of all shards one after the other, and its first file.

    Raises:
        UsageError: as `find_split` and `read_columns` do; a shard has other columns; or a `needed`
            one is missing.
    """
    first, *more = find_split(folder, split)
    columns = read_columns(first)
    for path in more:
        shard = read_columns(path)
        if shard.keys() != columns.keys():
            raise UsageError(
                f"{path}: has the columns {', '.join(shard)}, and {first.name} has "
                f"{', '.join(columns)}; give shards of one set"
            )
        columns = {name: [*values, *shard[name]] for name, values in columns.items()}
    if missing := [name for name in needed if name not in columns]:
        raise UsageError(f"{first}: no column {', '.join(missing)}; it has {', '.join(columns)}")
    return columns, first


def _shards(folder: Path, name: str) -> list[Path]:
    """NAME-00000-of-00003.parquet and so on, of which none may be missing."""
    found = sorted(folder.glob(f"{name}-*-of-*.parquet"))
    numbers = [re.findall(r"\d+", path.stem.removeprefix(name)) for path in found]
    places = sorted([int(number) for number in each] for each in numbers)
    if places != [[number, len(found)] for number in range(len(found))]:
        raise UsageError(
            f"--data_dir: {folder} has {', '.join(path.name for path in found)}: give all shards "
            "of one set"
        )
    return found


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The file's columns. In csv and tsv files every value is a string, as written.

    Raises:
        UsageError: the file cannot be read, or is not what its ending says.
    """
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix in (".csv", ".tsv"):
            return _read_table(text, path.suffix)
        return _read_json(text)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"cannot read {path}: byte {error.start:,} is not UTF-8; save it as UTF-8"
        ) from error
    except RecursionError as error:
        raise UsageError(f"cannot read {path}: nested too deeply") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"cannot read {path}: {reason}") from error


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
        refuse_doubles(table.column_names, _COLUMN_TWICE)
        return table.to_pydict()
    except pyarrow.ArrowException as error:  # some of them are no ValueErrors
        raise ValueError(f"damaged, or not parquet: {error}") from error


def _read_table(text: str, suffix: str) -> dict[str, list[str]]:
    """A header, and rows with as many fields; empty lines do not count."""
    if not text.strip():
        raise ValueError("the file is empty")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"line {line} has a NUL character: it is damaged, or not UTF-8 text")
    lines = _csv_rows(text) if suffix == ".csv" else _tsv_rows(text)
    (first, header), *rows = [(line, row) for line, row in lines if row]
    refuse_doubles(header, _COLUMN_TWICE)
    if len(header) == 1 and rows:  # an empty text, perhaps: then all others would move up
        for line, row in lines:
            if not row and first < line < rows[-1][0]:
                raise ValueError(f'line {line} is empty: remove it, or write "" in a csv file')
    for line, row in rows:
        if len(row) != len(header):
            remedy = "tabs that are missing or too many; no field can have a tab or a line break"
            if suffix == ".csv":
                remedy = 'commas that are missing or too many; put "quotation marks" around them'
            raise ValueError(
                f"line {line} has {len(row)} fields and the header {len(header)} "
                f"({', '.join(header)}): look for {remedy} in it"
            )
    return {name: [row[place] for _, row in rows] for place, name in enumerate(header)}


def _tsv_rows(text: str) -> list[tuple[int, list[str]]]:
    """GLUE's tab-separated files quote nothing: a quotation mark there is text."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return [(number, line.split("\t") if line else []) for number, line in enumerate(lines, 1)]


def _csv_rows(text: str) -> list[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # one for all of the process
    rows, line = [], 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f'line {line}: {error}; write a quotation mark inside a field twice ("")'
        ) from error
    return rows


def _read_json(text: str) -> dict[str, list[Any]]:
    """An array of objects, or one object per line; a line ends with a line feed alone."""
    if text.lstrip().startswith("["):
        rows = json.loads(text, object_pairs_hook=no_doubles)
    else:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line, object_pairs_hook=no_doubles))
                except ValueError as error:
                    raise ValueError(
                        f"line {number} is not JSON: {error}; expected one object per line, or one "
                        "array of objects"
                    ) from error
    if not rows:
        raise ValueError("the file is empty")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is {row!r:.40}: expected one object per example")
    names = {name: None for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}
