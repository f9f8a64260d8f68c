"""One clear message for a mistake a user can make, and a traceback for everything else."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

INSTALL = 'pip install "dwmgrad[{0}]" (in a checkout: pip install -e ".[{0}]")'
"""How to get what an extra brings; `.format(EXTRA)`."""


class UsageError(ValueError):
    """Something the user gave is wrong; the message says what, its value and the remedy."""


def choose(kind: str, name: str, names: Iterable[str], given: str = "") -> None:
    """Raise a UsageError, with a near one and a list of all, if `name` is not among `names`.

    `given` is the name as the user wrote it, where that is another.
    """
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"{kind} {given or name}: no such one.{hint} Choose from: {', '.join(names)}"
        )


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around a script's imports and its work: what may go wrong there ends with one line.

    A package that is missing and comes with `extra` ends with exit code 2, Ctrl-C with 130.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "dwmgrad":
            raise  # our own mistake
        cause: BaseException = error
        while isinstance(cause.__cause__, ImportError):  # transformers wraps them
            cause = cause.__cause__
        _end(2, f"error: {str(cause).splitlines()[0]}: {INSTALL.format(extra)}")
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        _end(130, "interrupted")


@contextlib.contextmanager
def one_line(*kinds: type[Exception], of: str = "") -> Iterator[None]:
    """Around a library's own checks of what the user gave: these errors are `UsageError`s.

    Their messages begin with `of`.
    """
    try:
        yield
    except UsageError:
        raise
    except kinds as error:
        if str(getattr(error, "name", "")).startswith("dwmgrad"):  # our own mistake
            raise
        text = repr(error) if isinstance(error, KeyError) else str(error)
        reason = textwrap.shorten(text, 600, placeholder=" ...") or type(error).__name__
        raise UsageError(f"{of}{reason}") from error


def run_cli(main: Callable[[], object], extra: str = "glue") -> None:
    """Run a script's `main` as `needs` says; a `UsageError` ends as one line and exit code 2."""
    with needs(extra):
        try:
            main()
        except UsageError as error:
            _end(2, f"error: {error}")


class UsageParser(argparse.ArgumentParser):
    """A script's parser: its errors are `UsageError`s, and it has --version."""

    def __init__(self, *args: Any, **options: Any) -> None:
        ours = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **{**ours, **options})
        from dwmgrad import __version__

        version = f"dwmgrad {__version__}"
        self.add_argument("--version", action="version", version=version, help="show it and exit")

    def error(self, message: str) -> NoReturn:
        """As one line."""
        raise UsageError(message)


def _end(code: int, text: str) -> NoReturn:
    sys.stderr.write(f"{os.path.basename(sys.argv[0])}: {text}\n")
    sys.exit(code)
