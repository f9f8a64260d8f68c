"""Style, types and tests in one command; makes a virtual environment first.

  python3 scripts/test.py               what every change must pass
  python3 scripts/test.py --library     the library's own tests alone: no style, no types, no tests
                                        of scripts/, none that train in processes of their own
  python3 scripts/test.py --slow        the slow tests, too
  python3 scripts/test.py --cov         with a report of coverage
  python3 scripts/test.py --oldest      the tests with the oldest supported versions, but for those
                                        of experiments and benchmarks, made with the newest
  python3 scripts/test.py --ecosystem   the tests with DeepSpeed, Lightning, TRL, Sentence
                                        Transformers, skorch, and two machines, and the tests that
                                        ship with torch and Accelerate
  python3 scripts/test.py --docs        the documentation, built strictly into site/

Other arguments go to pytest.
"""

import argparse
import os
import sys

from environment import ROOT, prepare, run, say

SOURCES = ["src", "scripts", "tests", "setup.py"]
KINDS = ("library", "oldest", "ecosystem", "docs")


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
    options, arguments = parser.parse_known_args(argv)
    if options.kind == "docs":
        if arguments:
            parser.error(f"--docs runs no tests and takes no other argument, got {arguments}")
        return documentation()
    marked = "not ecosystem"
    if options.kind == "oldest":
        python = str(prepare("test", ".venv-oldest", ROOT / "tests" / "oldest.txt"))
        arguments += ["--ignore", "tests/lab/experiments", "--ignore", "tests/lab/bench"]
    elif options.kind == "ecosystem":
        python, marked = str(prepare("ecosystem")), "ecosystem"
    else:
        python = str(prepare("test"))
        if options.kind == "library":
            marked = "not ecosystem and not laboratory and not hosts"
        else:
            style(python)
    say("tests: pytest")
    # a file stays on one worker: its fixtures train on several ranks
    workers = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
    run([python, "-m", "pytest", "-m", marked, *workers, *arguments])


def style(python: str) -> None:
    """Checks style and types."""
    say("style: ruff")
    run([python, "-m", "ruff", "check", *SOURCES])
    run([python, "-m", "ruff", "format", "--check", *SOURCES])
    say("types: mypy")
    run([python, "-m", "mypy"])


def documentation() -> None:
    """Builds the documentation."""
    python = str(prepare("docs"))
    say("docs: mkdocs")
    run([python, "-m", "mkdocs", "build", "--strict"])


if __name__ == "__main__":
    main(sys.argv[1:])
