"""`python -m dwmgrad SCRIPT ARGS`: runs an unmodified script that knows `--optim dwmgrad`."""

from __future__ import annotations

import builtins
import os
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType

from . import register
from .integrations.optim_args import OPTIM_ARGS

USAGE = """\
usage: python -m dwmgrad SCRIPT [ARGS ...]
       accelerate launch [OPTIONS] -m dwmgrad SCRIPT [ARGS ...]
       torchrun [OPTIONS] -m dwmgrad SCRIPT [ARGS ...]

Runs SCRIPT as `python SCRIPT ARGS` would, with one difference: its TrainingArguments, and its
command line if it is built with HfArgumentParser, understand

  --optim dwmgrad
  --optim_args "max_window=100,window_signal=decrease"
      keys: {keys}

--learning_rate, --weight_decay and --adam_epsilon mean what they mean for AdamW. The Trainer hands
its loss to the optimizer by itself, and its logs show window and effective_momentum.

example: python -m dwmgrad run_glue.py --optim dwmgrad --task_name mrpc ...
"""


def main(arguments: list[str]) -> None:
    """Registers the name and runs the script in `arguments[0]` with the rest as its arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        usage = USAGE.format(keys=", ".join(OPTIM_ARGS))
        print(usage, end="", file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    script = arguments[0]
    if not os.path.isfile(script):
        option = (
            "give the script before its arguments" if script.startswith("-") else "no such file"
        )
        print(f"python -m dwmgrad: cannot run {script!r}: {option}", file=sys.stderr)
        sys.exit(2)
    register()
    path = os.path.abspath(script)
    sys.argv = arguments
    # `python -m` put the working directory here, `python SCRIPT` would have put the script's.
    sys.path[0] = os.path.dirname(path)
    _show_only_frames_of(path)
    # Not runpy.run_path: it writes sys.argv[0], and takes `__main__` away again at the end.
    module = ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = SourceFileLoader("__main__", path)
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)


def _show_only_frames_of(path: str) -> None:
    """A traceback starts in the script, as if it had been run directly."""
    show = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        start = trace
        while start is not None and start.tb_frame.f_code.co_filename != path:
            start = start.tb_next
        if start is None and not isinstance(error, SyntaxError):  # not the script's doing
            start = trace
        show(kind, error.with_traceback(start), start)

    sys.excepthook = excepthook


if __name__ == "__main__":
    main(sys.argv[1:])
