"""What the experiments' scripts have in common: their command lines."""

from __future__ import annotations

import shlex
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from glue.errors import UsageError, add_version

from experiments.files import write_text

T = TypeVar("T")

_PLACEHOLDERS = {"data_dir": "DATA", "model_name_or_path": "MODEL"}


def parse(kind: type[T], argv: Sequence[str], doc: str | None, example: str) -> tuple[str, T]:
    """The file, which comes first, and the arguments.

    Args:
        kind: their dataclass; it has `processes`.
        argv: the words of the command line.
        doc: for --help.
        example: a file, for the message when there is none.

    Raises:
        UsageError: no file, an unknown argument, or a value that does not parse.
    """
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise UsageError(message)

    parser = Parser(
        kind,  # type: ignore[arg-type]
        description=doc,
        usage="%(prog)s CONFIG.yaml [--name value ...]",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_version(parser)
    words = list(argv)
    file = words.pop(0) if words and not words[0].startswith("-") else None
    arguments, rest = parser.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        raise UsageError(f"{rest[0]!r} is no argument, nor one's value; see --help")
    if file is None:
        raise UsageError(f"give the file first, as {example}")
    if arguments.processes < 1:
        raise UsageError(f"--processes {arguments.processes}: must be at least 1")
    return file, arguments


def command(script: str, file: str | Path, root: Path, given: Mapping[str, Any]) -> str:
    """The command line, without folders of this machine.

    Args:
        script: its name in scripts/.
        file: the configuration; outside of `root` it has no folder.
        root: the repository.
        given: argument: value; None: not given. Data and model become DATA and MODEL.
    """
    path = Path(file).resolve()
    root = root.resolve()
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    words = ["python", f"scripts/{script}", name]
    for argument, value in given.items():
        if value is not None:
            value = _PLACEHOLDERS.get(argument, value)
            values = value if isinstance(value, list) else [value]
            words += [f"--{argument}", *map(str, values)]
    return shlex.join(words)


def check_output(path: Path) -> None:
    """Look, before any training, whether `path` can be written.

    Raises:
        UsageError: it cannot.
    """
    trial = path.parent / f".{path.name}.trial"
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        write_text(trial, "")
        trial.unlink()
    except OSError as error:
        raise UsageError(
            f"--output {path}: cannot be written: {error.strerror or error}"
        ) from error
