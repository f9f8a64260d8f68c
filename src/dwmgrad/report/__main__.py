"""`python -m dwmgrad.report RUN_DIR`: draws a run's loss, learning rate, window and momentum."""

import argparse
import sys
from pathlib import Path

from .. import __version__
from .plot import plot_run


def main(arguments: list[str]) -> None:
    """Parses the command line, draws the picture and says where it is."""
    parser = argparse.ArgumentParser(prog="python -m dwmgrad.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="an output_dir, or a checkpoint inside one")
    parser.add_argument(
        "--output", type=Path, help="the PNG to write (default: RUN_DIR/window.png)"
    )
    parser.add_argument("--version", action="version", version=f"dwmgrad {__version__}")
    options = parser.parse_args(arguments)
    try:
        print(plot_run(options.run_dir, options.output))
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"python -m dwmgrad.report: {error}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
