"""Command line and YAML / JSON files to arguments: one set of names, the command line wins."""

from __future__ import annotations

import difflib
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
from glue.ranges import check_warmup

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

    def names(self) -> dict[str, str]:
        """What stands after `--`, and the argument that it sets: `no_plot` sets `plot`."""
        words = ((word, action.dest) for action in self._actions for word in action.option_strings)
        return {word[2:].replace("-", "_"): name for word, name in words if word[:2] == "--"}

    def take_file(self, path: str) -> set[str]:
        """Makes the values of a file the defaults, parsed as on the command line; their names."""
        values = read_with_base(path)
        actions = {a.dest: a for a in reversed(self._actions) if a.dest not in _ASKED}
        for name, value in values.items():
            if name not in actions:
                raise UsageError(_unknown(str(name), sorted(actions), path))
            if value is not None:
                actions[name].required = False
                self.set_defaults(**{name: _word(actions[name], value, path)})
        return {name for name, value in values.items() if value is not None}


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
    given: set[str] = set()
    while words and words[0].lower().endswith(_FILES):
        given |= parser.take_file(words.pop(0))
    options = {word[2:].split("=")[0].replace("-", "_") for word in words if word[:2] == "--"}
    names = parser.names()
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
    check_warmup(getattr(portable, "warmup_ratio", getattr(training, "warmup_ratio", None)))
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
