"""Files of settings that would be misread, or would take for ever: refused in one line, at once."""

from __future__ import annotations

import time

import pytest
from experiments.config import load
from glue.configs import read_settings
from glue.errors import UsageError
from glue.parsing import parse

LAUGHS = "a0: &a0 ha\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
BAD = [
    ("a.yaml", LAUGHS, r"\*a0 repeats another part"),
    ("a.yaml", "a: &a {b: 1}\nc:\n  <<: *a\n", r"\*a repeats another part"),
    ("a.yaml", "a: &a [*a]\n", r"\*a repeats another part"),
    ("a.yaml", "seed: 1\nseed: 2\n", "'seed' is there twice"),
    ("a.yaml", "a: {b: 1, b: 2}\n", "'b' is there twice"),
    ("a.yaml", "seed: 010\n", "010 means 8 in YAML; write that, or quote it"),
    ("a.yaml", "seed: 1:30\n", "1:30 means 90 in YAML"),
    ("a.yaml", "seed: -1:30:00.5\n", "means -5400.5 in YAML"),
    ("a.json", '{"seed": 1, "seed": 2}', "'seed' is there twice"),
    ("a.yaml", "a:\n\tb: 1\n", "not YAML.*cannot start any token"),
    ("a.yaml", "a: " + "[" * 60_000, "nested too deeply"),
    ("a.json", "[" * 60_000, "nested too deeply"),
    ("a.yaml", "a: 1\n" * 20_000, "larger than 65,536 bytes"),
    ("a.yaml", "a: " + "9" * 60_000, None),
    ("a.yaml", "a: \0\n", "not YAML"),
    ("a.yaml", "a: !!python/object/apply:os.system [true]\n", "not YAML"),
    ("a.yaml", "a: 1\n---\nb: 2\n", "not YAML.*single document"),
    ("a.yaml", b"a: \xe9\n", "not YAML.*utf-8"),
    ("a.yaml", "", "expected lines of `name: value`"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_refused_within_a_second(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.perf_counter()
    if message is None:  # only some versions of Python take a number of so many digits for one
        try:
            read_settings(path)
        except UsageError:
            pass
    else:
        with pytest.raises(UsageError, match=message) as caught:
            read_settings(path)
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match=message):
            parse([str(path)])
        if name.endswith("yaml"):
            with pytest.raises(UsageError, match=message):
                load(path, ["a", "seed"])
    assert time.perf_counter() - started < 3  # three readings


def test_what_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("\ufeffa: &unused 1\nb: {c: [1e-3]}\n", encoding="utf-8")
    assert read_settings(tmp_path / "a.yaml") == {"a": 1, "b": {"c": ["1e-3"]}}
    with pytest.raises(UsageError, match="cannot read .*: Is a directory"):
        read_settings(tmp_path)


def test_a_value_that_is_no_word(tmp_path):
    (tmp_path / "a.yaml").write_text(f"output_dir: 0x{'f' * 20_000}\n")
    (tmp_path / "b.yaml").write_text("lr_scheduler_kwargs: {a: 2020-01-01}\n")
    with pytest.raises(UsageError, match="b.yaml: lr_scheduler_kwargs: no argument has such"):
        parse([str(tmp_path / "b.yaml")])
    try:
        parse([str(tmp_path / "a.yaml"), "--use_cpu"])
    except UsageError as error:  # where Python limits the digits
        assert "a.yaml: output_dir: no argument has such" in str(error)
