"""The page of evidence and its pictures, from the committed results alone.

    python scripts/make_report.py
    python scripts/make_report.py --results my/results --output my/evidence.md

Reads the comparisons, experiments, ablations and studies there; `experiments.evidence.page` has
how their files begin. The same files give the same page, byte by byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glue.errors import UsageError, UsageParser, needs, run_cli

with needs("experiments"):
    from atomic import check_output, write_text
    from experiments.evidence.page import page, read_results


def main(argv: Sequence[str] | None = None) -> Path:
    """Write what `argv` (default: the command line) asks for; return the page's path."""
    parser = UsageParser(description=__doc__)
    for name, default, text in (
        ("results", "docs/results", "The folder of JSON files."),
        ("output", "docs/evidence.md", "The page; pictures go beside it."),
        ("configs", "configs", "Its files without a result are listed as not run."),
    ):
        text += f" Default: {default}"
        parser.add_argument(
            f"--{name}", type=Path, default=Path(default), metavar="PATH", help=text
        )
    arguments = parser.parse_args(argv)
    if not arguments.configs.is_dir():
        raise UsageError(
            f"--configs {arguments.configs}: no such folder; run this in the checkout, or give its "
            "configs/"
        )
    results = read_results(arguments.results)
    output: Path = arguments.output
    if not results and output.exists():
        raise UsageError(
            f"--results {arguments.results}: has no results, and --output {output} is there; give "
            "the folder with comparison-*.json"
        )
    check_output(output)
    write_text(output, page(results, arguments.configs, output))
    print(f"{len(results)} files of results: {output} and its pictures")
    return output


if __name__ == "__main__":
    run_cli(main, "experiments")
