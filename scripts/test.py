"""Style, types and tests in one command; makes a virtual environment first.

  python3 scripts/test.py               what every change must pass
  python3 scripts/test.py --slow        the slow tests, too
  python3 scripts/test.py --oldest      the tests with the oldest supported versions, but for those
                                        of the experiments, which are made with the newest
  python3 scripts/test.py --ecosystem   the tests with DeepSpeed, TRL, Sentence Transformers and
                                        the tests that ship with torch and Accelerate
  python3 scripts/test.py --docs        the documentation, built strictly into site/

Other arguments go to pytest.
"""

import os
import sys

from environment import ROOT, prepare, run, say

SOURCES = ["src", "scripts", "tests"]


def main(arguments: list[str]) -> None:
    """Runs the checks one by one and stops at the first that fails."""
    if "--docs" in arguments:
        if arguments != ["--docs"]:
            sys.exit(f"--docs runs no tests and takes no other argument, got {arguments}")
        python = str(prepare("docs", ".venv-docs"))
        say("docs: mkdocs")
        return run([python, "-m", "mkdocs", "build", "--strict"])
    marked = "not ecosystem"
    if {"--oldest", "--ecosystem"} <= set(arguments):
        sys.exit("--oldest and --ecosystem exclude each other: the others need newer versions")
    if "--oldest" in arguments:
        arguments.remove("--oldest")
        python = str(prepare("test", ".venv-oldest", ROOT / "tests" / "oldest.txt"))
        arguments += ["--ignore", "tests/experiments"]
    elif "--ecosystem" in arguments:
        arguments.remove("--ecosystem")
        python, marked = str(prepare("ecosystem")), "ecosystem"
    else:
        python = str(prepare("test"))
        say("style: ruff")
        run([python, "-m", "ruff", "check", *SOURCES])
        run([python, "-m", "ruff", "format", "--check", *SOURCES])
        say("types: mypy")
        run([python, "-m", "mypy"])
    say("tests: pytest")
    # a file stays on one worker: its fixtures train on several ranks
    workers = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
    run([python, "-m", "pytest", "-m", marked, *workers, *arguments])


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(__doc__)
    else:
        main(sys.argv[1:])
