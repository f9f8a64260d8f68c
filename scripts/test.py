"""Style, types and tests in one command; makes a virtual environment first.

  python3 scripts/test.py               what every change must pass
  python3 scripts/test.py --library     the library's own tests alone: no style, no types, no tests
                                        of scripts/, none that train in processes of their own
  python3 scripts/test.py --slow        the slow tests, too
  python3 scripts/test.py --cov         with a report of coverage
  python3 scripts/test.py --oldest      the tests with the oldest supported versions, but for those
                                        that depend on no version
  python3 scripts/test.py --ecosystem   the tests with DeepSpeed, Lightning, TRL, Sentence
                                        Transformers, skorch, and two machines, and the tests that
                                        ship with torch and Accelerate
  python3 scripts/test.py --docs        the documentation, built strictly into site/

With --prepare each makes its environment and stops there. Other arguments go to pytest.
"""

import argparse
import os
import sys

from environment import ROOT, prepare, run, say

SOURCES = ["src", "scripts", "tests", "setup.py"]
KINDS = ("library", "oldest", "ecosystem", "docs")
MARKED = {
    None: "not ecosystem",
    "library": "not ecosystem and not laboratory and not hosts",
    "oldest": "not ecosystem and not newest",
    "ecosystem": "ecosystem",
}
ENVIRONMENTS: dict[str, tuple] = {
    "oldest": ("test", ".venv-oldest", ROOT / "tests" / "oldest.txt"),
    "ecosystem": ("ecosystem",),
    "docs": ("docs",),
}
"""What `prepare` takes; all others take the tests' own."""


def main(argv: list[str] | None = None) -> None:
    """Runs the checks one by one and stops at the first that fails."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--library | --oldest | --ecosystem | --docs] [pytest's arguments]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = parser.add_mutually_exclusive_group()
    for kind in KINDS:
        kinds.add_argument(
            f"--{kind}", dest="kind", action="store_const", const=kind, help=argparse.SUPPRESS
        )
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    options, arguments = parser.parse_known_args(argv)
    if options.kind == "docs" and arguments:
        parser.error(f"--docs runs no tests and takes no other argument, got {arguments}")
    python = str(prepare(*ENVIRONMENTS.get(options.kind, ("test",))))
    if options.prepare:
        return
    if options.kind == "docs":
        say("docs: mkdocs")
        return run([python, "-m", "mkdocs", "build", "--strict"])
    if options.kind is None:
        style(python)
    say("tests: pytest")
    # a file stays on one worker: its fixtures train on several ranks; conftest.py orders them
    workers = ["-n", str(min(4, os.cpu_count() or 1))]
    workers += ["--dist", "loadfile", "--no-loadscope-reorder"]
    run([python, "-m", "pytest", "-m", MARKED[options.kind], *workers, *arguments])


def style(python: str) -> None:
    """Checks style and types."""
    say("style: ruff")
    run([python, "-m", "ruff", "check", *SOURCES])
    run([python, "-m", "ruff", "format", "--check", *SOURCES])
    say("types: mypy")
    run([python, "-m", "mypy"])


if __name__ == "__main__":
    main(sys.argv[1:])
