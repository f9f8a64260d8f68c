"""What the experiments' scripts have in common: their command lines."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # noqa: F401 - without the extra, --help says what to install
from environment import ROOT
from glue.errors import UsageError, UsageParser

from experiments.evidence.results import read_result
from experiments.runner import Failure

_OPTIONS: dict[str, dict[str, Any]] = {
    "data_dir": {"help": "the folder with the data"},
    "model_name_or_path": {"help": "the pretrained encoder, for glue-*"},
    "contenders": {"nargs": "+", "help": "only these of the file"},
    "output_dir": {"help": "where the runs go"},
    "processes": {"type": int, "default": 2, "help": "runs at a time, one thread each; 0: none"},
}
_PLACEHOLDERS = {"data_dir": "DATA", "model_name_or_path": "MODEL"}


def parse(
    argv: Sequence[str] | None, doc: str | None, example: str, **more: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The file, which comes first, and the values of the other arguments, None: not given.

    Args:
        argv: the words of the command line; None: this process's.
        doc: for --help.
        example: a file, for the UsageError when there is none.
        more: arguments beside those that all scripts have: what `add_argument` takes.
    """
    parser = UsageParser(description=doc, usage="%(prog)s CONFIG.yaml [--name value ...]")
    parser.add_argument("file", nargs="?", metavar="CONFIG.yaml", help=f"as {example}")
    for name, options in {**more, **_OPTIONS}.items():
        parser.add_argument(*dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]), **options)
    values = vars(parser.parse_args(argv))
    file = values.pop("file")
    if file is None:
        raise UsageError(f"give the file first, as {example}")
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("~"):  # which a shell leaves after "="
            values[name] = os.path.expanduser(value)
    if values["processes"] < 0:
        raise UsageError(f"--processes {values['processes']}: must be at least 0")
    return file, values


def command(script: str, file: str | Path, given: Mapping[str, Any]) -> str:
    """The command line, without folders of this machine: data and model become DATA and MODEL.

    A file outside of the repository has no folder. `given` is argument: value, None: not given.
    """
    path = Path(file).resolve()
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    words = ["python", f"scripts/{script}", name]
    for argument, value in given.items():
        if value is not None:
            value = _PLACEHOLDERS.get(argument, value)
            values = value if isinstance(value, list) else [value]
            words += [f"--{argument}", *map(str, values)]
    return shlex.join(words)


def kept_in(
    path: Path, kind: str, check: Callable[[dict[str, Any], Any], None], asked: Any
) -> dict[str, Any] | None:
    """What `path` has of an earlier call, or None.

    A UsageError names it, also if `check` of it and of what is `asked` for raises one.
    """
    if not path.exists():
        return None
    try:
        kept = read_result(path, kind)
        check(kept, asked)
    except UsageError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise UsageError(f"--output {path}: {said}") from error
    return kept


def end(failures: Sequence[Failure]) -> None:
    """Raise a UsageError if some runs failed: at a script's end, when all results are written."""
    if failures:
        raise UsageError(
            f"{len(failures)} runs failed, the first with: {failures[0].error}; the others stand, "
            f"the same command tries again. For tracebacks see {failures[0].log}"
        )
