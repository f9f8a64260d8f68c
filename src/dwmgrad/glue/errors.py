"""One clear message for a mistake a user can make, and a traceback for everything else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UsageError(ValueError):
    """Something the user gave is wrong; the message says what, its value and the remedy."""


def run_cli(main: Callable[[], object]) -> None:
    """Run a script's `main`.

    A `UsageError` ends as one line on stderr and exit code 2, Ctrl-C as one line and 130.
    """
    name = os.path.basename(sys.argv[0])
    try:
        main()
    except UsageError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{name}: interrupted\n")
        sys.exit(130)
