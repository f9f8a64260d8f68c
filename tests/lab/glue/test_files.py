"""Data files as people have them: what is read, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from glue.arguments import DataArguments
from glue.data import load_splits
from glue.errors import UsageError
from glue.files import find_split, read_columns
from glue.tasks import get_task

SEPARATED = "a\u2028b\u2029c\x85d"


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_bytes(text.encode("utf-8"))
    return folder / name


@pytest.mark.parametrize(
    ("name", "text", "sentences"),
    [
        # str.splitlines() ends a line at each of them
        ("a.jsonl", f'{{"s": "{SEPARATED}"}}\r\n\n{{"s": "x"}}\n', [SEPARATED, "x"]),
        ("a.tsv", "s\tl\na\u2028b\x85c\x0bd\t1\n", ["a\u2028b\x85c\x0bd"]),
        ("a.csv", "s,l\na\u2028b\x85c\x1cd,1\n", ["a\u2028b\x85c\x1cd"]),
        ("a.csv", "\ufeffs,l\na,1\n", ["a"]),
        ("a.tsv", "\ufeffs\tl\na\t1\n", ["a"]),
        ("a.json", '\ufeff[{"s": "a"}]', ["a"]),
        ("a.csv", 's,l\r\n"a, ""b""\r\nc",1\r\n\r\n', ['a, "b"\r\nc']),
        ("a.tsv", 's\tl\r\n"a half quote\t1\r\n', ['"a half quote']),
        ("a.csv", "s,l\n\na,1\n\nb,1\n\n", ["a", "b"]),
        ("a.csv", f"s,l\n{'x' * 200_000},1\n", ["x" * 200_000]),
    ],
)
def test_what_is_read(name, text, sentences, tmp_path):
    columns = read_columns(write(tmp_path, name, text))
    assert columns["s"] == sentences
    assert all(len(values) == len(sentences) for values in columns.values())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        # with one comma too many in every row pandas took the first field for a row's name
        ("a.csv", "s,l\nwell, good,1\nno, bad,0\n", "line 2 has 3 fields and the header 2 .s, l."),
        ("a.csv", 's,l\n"a\nb",1\nc,d,0\n', "line 4 has 3 fields.*quotation marks"),
        ("a.csv", "s,l\na,1\nb\n", "line 3 has 1 fields"),
        ("a.tsv", "s\tl\na\tb\t1\n", "line 2 has 3 fields.*tabs"),
        ("a.csv", "l,l\n1,2\n", "the column 'l' is there twice"),
        ("a.csv", "s,l\na,\0\n", "line 2 has a NUL"),
        ("a.csv", 's,l\n"a,1\nb,2\n', "line 2: unexpected end of data.*twice"),
        ("a.csv", 's,l\n"a"b,1\n', "line 2: .*twice"),
        ("a.tsv", "s\na\n\nb\n", "line 3 is empty"),
        ("a.csv", "\n \n", "the file is empty"),
        ("a.json", "[]", "the file is empty"),
        ("a.json", "[1]", "row 0 is 1: expected one object"),
        ("a.jsonl", '{"s": "a"}\n{"s":\n', "line 2 is not JSON.*one object per line"),
        ("a.jsonl", '{"s": "a", "s": "b"}\n', "line 1 is not JSON: 's' is there twice"),
        ("a.jsonl", '{"s":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_refused(name, text, message, tmp_path):
    with pytest.raises(UsageError, match=f"cannot read .*{name}: {message}") as caught:
        read_columns(write(tmp_path, name, text))
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "a.csv").write_bytes("s,l\nné,1\n".encode("latin-1"))
    (tmp_path / "b.csv").write_bytes("s,l\na,1\n".encode("utf-16"))
    for name, byte in (("a.csv", 5), ("b.csv", 0)):
        with pytest.raises(UsageError, match=f"{name}: byte {byte} is not UTF-8"):
            read_columns(tmp_path / name)


def test_damaged_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"s": ["a" * 50] * 2000}), path)
    whole = path.read_bytes()
    for spoilt in (b"", b"PAR1junkPAR1", whole[:-30], bytes(100) + whole[100:]):
        path.write_bytes(spoilt)
        with pytest.raises(UsageError, match=r"cannot read .*a\.parquet"):
            read_columns(path)
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["s", "s"]), path)
    with pytest.raises(UsageError, match="'s' is there twice"):
        read_columns(path)


def test_shards_are_all_there_and_alike(tmp_path):
    def shard(name: str, rows: dict) -> None:
        pq.write_table(pa.table(rows), tmp_path / f"train-{name}.parquet")

    shard("00000-of-00003", {"sentence": ["a"], "label": [1]})
    shard("00002-of-00003", {"sentence": ["c"], "label": [1]})
    with pytest.raises(UsageError, match="give all shards of one set"):
        find_split(tmp_path, "train")
    shard("00001-of-00003", {"sentence": ["b"]})
    assert len(find_split(tmp_path, "train")) == 3
    options = {"train": True, "validation": False, "test": False}
    data = DataArguments(data_dir=str(tmp_path))
    with pytest.raises(UsageError, match="00001-of-00003.*has the columns sentence, and"):
        load_splits(get_task("sst2"), data, **options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"sentence": "\\ud83d", "label": 1}', "sentence in row 0 has half a character"),
        ('{"sentence": "a", "label": 1}\n{"sentence": "b", "label": "x"}', "label 'x' in row 1"),
        (f'{{"sentence": "a", "label": 1{"0" * 400}}}', "label 10+.* in row 0 is not an integer"),
    ],
)
def test_values_that_no_column_holds(rows, message, tmp_path):
    write(tmp_path, "train.jsonl", rows)
    options = {"train": True, "validation": False, "test": False}
    with pytest.raises(UsageError, match=message):
        load_splits(get_task("sst2"), DataArguments(data_dir=str(tmp_path)), **options)
