"""Command line and YAML / JSON files to arguments: one set of names, the command line wins."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import HfArgumentParser, TrainingArguments

from glue.arguments import (
    DataArguments,
    LoraArguments,
    ModelArguments,
    PortableArguments,
    ReportArguments,
    apply_portable,
)
from glue.configs import read_with_base
from glue.errors import UsageError, UsageParser, one_line

_FILES = (".yaml", ".yml", ".json")
_ASKED = {"help", "version"}  # on the command line alone


class Arguments(NamedTuple):
    """Everything a run was asked for. `given` holds the names that the user set himself."""

    model: ModelArguments
    data: DataArguments
    lora: LoraArguments
    report: ReportArguments
    training: TrainingArguments
    given: frozenset[str]


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows defaults, and the scripts' examples line by line."""


class _Parser(UsageParser, HfArgumentParser):
    """Takes files of arguments, too, and tells near matches of a typo."""

    def take_files(self, paths: Sequence[str]) -> set[str]:
        """Makes the files' values the defaults, parsed as on the command line; their names."""
        actions = {a.dest: a for a in reversed(self._actions) if a.dest not in _ASKED}
        words: dict[str, Any] = {}
        for path in paths:
            for name, value in read_with_base(path).items():
                if name not in actions:
                    raise UsageError(_unknown(str(name), sorted(actions), path))
                words[name] = None if value is None else _word(actions[name], value, path)
        taken = {name: word for name, word in words.items() if word is not None}
        for name in taken:
            actions[name].required = False
        self.set_defaults(**taken)
        return set(taken)


def _word(action: Action, value: Any, path: str) -> str | list[str]:
    """A value of a file as the command line would give it; argparse itself checks its type."""
    name, several = action.dest, action.nargs in ("+", "*")
    if value is False and name.endswith("_strategy"):
        value = "no"  # which YAML reads as false
    if isinstance(value, bool) and action.choices:
        value = str(value).lower()  # as YAML writes it
    if isinstance(value, dict) and name == "optim_args":
        value = ",".join(f"{key}={each}" for key, each in value.items())
    try:
        if isinstance(value, list) and several:
            return [str(each) for each in value]
        word = json.dumps(value) if isinstance(value, dict) else str(value)
    except (TypeError, ValueError) as error:  # a date inside, a number of 10,000 digits
        raise UsageError(f"{path}: {name}: no argument has such a value ({error})") from error
    if isinstance(value, list) or (action.choices and word not in map(str, action.choices)):
        wanted = f"one of {', '.join(map(str, action.choices))}" if action.choices else "one value"
        raise UsageError(f"{path}: {name} {word:.80}: expected {wanted}")
    return [word] if several else word


def parse(argv: Sequence[str] | None = None, description: str = "") -> Arguments:
    """Parse `argv` (default: the command line).

    Arguments that end in .yaml, .yml or .json and stand before the first option are files of
    `name: value`. Later files win over earlier ones, options win over files. A file's `base: FILE`
    names one that it wins over, by its place beside it.

    Raises:
        UsageError: an unknown name, or a value that does not parse.
    """
    ours: Any = (ModelArguments, DataArguments, LoraArguments, ReportArguments)
    theirs: Any = (PortableArguments, TrainingArguments)
    parser = _Parser(
        (*ours, *theirs),
        description=description,
        formatter_class=_Help,
        usage="%(prog)s [FILE.yaml | FILE.json ...] [--name value ...]",
    )
    words = list(sys.argv[1:] if argv is None else argv)
    files = list(itertools.takewhile(lambda word: word.lower().endswith(_FILES), words))
    given, words = parser.take_files(files), words[len(files) :]
    options = {word[2:].split("=")[0].replace("-", "_") for word in words if word[:2] == "--"}
    actions = parser._option_string_actions.items()  # `no_plot` sets `plot`
    names = {word[2:].replace("-", "_"): a.dest for word, a in actions if word[:2] == "--"}
    for name in sorted(options - names.keys()):
        raise UsageError(_unknown(name, sorted(names.keys() - _ASKED), "the command line"))
    with one_line(ValueError, ImportError, OSError, TypeError):  # TrainingArguments' own checks
        *parts, rest = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    if rest:
        raise UsageError(
            f"{rest[0]!r} belongs to no argument; a file of arguments stands first, as NAME.yaml"
        )
    model, data, lora, report, portable, training = parts
    apply_portable(training, portable)
    for each in (model, data, lora, training):
        _settle_paths(each)
    given |= {names[option] for option in options}
    return Arguments(model, data, lora, report, training, frozenset(given))


_PATHS = """
    data_dir train_file validation_file test_file dataset_name model_name_or_path config_name
    tokenizer_name cache_dir adapter_name_or_path resume_from_checkpoint
""".split()


def _settle_paths(arguments: Any) -> None:
    """An empty one is refused, which would count as not given; `~` is the home folder, which a
    shell leaves as it is after "=" and in quotation marks."""
    for name in sorted(vars(arguments).keys() & _PATHS):
        value = getattr(arguments, name)
        if value == "":
            raise UsageError(f"--{name} '': give a value, or leave it out")
        if isinstance(value, str) and value.startswith("~"):
            setattr(arguments, name, os.path.expanduser(value))


def _unknown(name: str, names: Sequence[str], where: str) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; see --help"
    return f"unknown argument {name!r} in {where}{hint}"
