"""The page of evidence and its pictures, from the committed results alone.

    python scripts/make_report.py
    python scripts/make_report.py --results my/results --output my/evidence.md

Reads comparison-*.json, experiment-*.json and ablation-*.json. The same files give the same page,
byte by byte.
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glue.errors import UsageError, add_version, needs, run_cli

with needs("glue"):
    from experiments.evidence.files import read_results
    from experiments.evidence.page import page


@dataclass
class ReportArguments:
    """Where things are."""

    results: str = field(default="docs/results", metadata={"help": "The folder of JSON files."})
    output: str = field(
        default="docs/evidence.md", metadata={"help": "The page; pictures go beside it."}
    )
    configs: str = field(
        default="configs", metadata={"help": "What could be run: its files without a result are "
                                     "listed as not run."}
    )  # fmt: skip


def parse(argv: Sequence[str]) -> ReportArguments:
    """The arguments.

    Raises:
        UsageError: an unknown argument.
    """
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise UsageError(message)

    parser = Parser(
        ReportArguments,  # type: ignore[arg-type]
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_version(parser)
    arguments, rest = parser.parse_args_into_dataclasses(
        list(argv), return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        raise UsageError(f"{rest[0]!r} is no argument, nor one's value; see --help")
    return arguments


def main(argv: Sequence[str] | None = None) -> Path:
    """Write what `argv` (default: the command line) asks for; return the page's path."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    output, configs = Path(arguments.output), Path(arguments.configs)
    if not configs.is_dir():
        raise UsageError(f"--configs {configs}: no such folder; give the package's configs/")
    results = read_results(Path(arguments.results))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(results, configs, output), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written: {error}") from error
    print(f"{len(results)} files of results: {output} and its pictures")
    return output


if __name__ == "__main__":
    run_cli(main)
