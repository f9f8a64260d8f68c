"""`python -m dwmgrad SCRIPT ARGS`: runs an unmodified script that knows `--optim dwmgrad`."""

from __future__ import annotations

import builtins
import os
import runpy
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType

from . import __version__, startup
from .integrations.optim_args import OPTIM_ARGS

USAGE = """\
usage: python -m dwmgrad SCRIPT [ARGS ...]
       python -m dwmgrad -m MODULE [ARGS ...]
       accelerate launch [OPTIONS] -m dwmgrad SCRIPT [ARGS ...]      (or -m MODULE)
       torchrun [OPTIONS] -m dwmgrad SCRIPT [ARGS ...]               (or -m MODULE)
       python -m dwmgrad --version

Runs SCRIPT as `python SCRIPT ARGS` would, or MODULE as `python -m MODULE ARGS`, with one
difference: its TrainingArguments, and its command line if it is built with HfArgumentParser,
understand

  --optim dwmgrad
  --optim_args "max_window=100,window_signal=decrease"
      keys: {keys}

--learning_rate, --weight_decay and --adam_epsilon mean what they mean for AdamW. The Trainer hands
its loss to the optimizer by itself, and its logs show window and effective_momentum.

The Python processes that SCRIPT starts know the name, too, through PYTHONPATH: ranks, spawned
workers, the training that a command-line tool launches. Not those that run with `python -I`, `-E`
or `-S`, or with a PYTHONPATH of their own: `import dwmgrad` in their code does it there.

examples:
  python -m dwmgrad run_glue.py --optim dwmgrad --task_name mrpc ...
  python -m dwmgrad -m trl.scripts.sft --optim dwmgrad ...
  python -m dwmgrad "$(command -v trl)" sft --optim dwmgrad ...     (any Python command is a SCRIPT)
"""

_HELP = {"-h", "--help", "--version", "-V"}


def main(arguments: list[str]) -> None:
    """Runs the script in `arguments[0]`, or the module after `-m`, with the rest as arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        usage = USAGE.format(keys=", ".join(OPTIM_ARGS))
        print(usage, end="", file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("-V", "--version"):
        print(f"dwmgrad {__version__}")
        sys.exit(0)
    is_module = arguments[0] == "-m"
    command = arguments[is_module:]
    if not command or not (is_module or os.path.isfile(command[0])):
        wrong = command[0] if command else "-m"
        reason = "not a file" if os.path.exists(wrong) else "no such file"
        if not command:
            reason = "give the module after it"
        elif wrong.startswith("-"):
            reason = "give the script before its arguments"
        print(f"python -m dwmgrad: cannot run {wrong!r}: {reason}", file=sys.stderr)
        sys.exit(2)

    startup.inherit()
    ended_well = False
    try:
        _run_module(command) if is_module else _run_script(command)
        ended_well = True
    except SystemExit as end:
        ended_well = end.code in (None, 0)
        raise
    finally:
        tells = ended_well and os.environ.get("RANK", "0") == "0" and not _HELP & set(command)
        if startup.none_was_created() and tells:
            print(
                f"python -m dwmgrad: {command[0]} has ended without creating a DWMGrad: give it "
                "--optim dwmgrad, if it trains",
                file=sys.stderr,
            )


def _run_script(command: list[str]) -> None:
    path = os.path.abspath(command[0])
    sys.argv = command
    if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
        # `python -m` put the working directory here, `python SCRIPT` would have put the script's.
        sys.path[0] = os.path.dirname(path)
    # Not runpy.run_path: it writes sys.argv[0], and takes `__main__` away again at the end.
    module = _new_main()
    module.__file__ = path
    module.__loader__ = SourceFileLoader("__main__", path)
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, module.__dict__)


def _run_module(command: list[str]) -> None:
    sys.argv = ["-m", *command[1:]]
    _new_main()
    # What `python -m` itself calls. runpy.run_module would take `__main__` away again at the end.
    runpy._run_module_as_main(command[0])  # type: ignore[attr-defined]


def _new_main() -> ModuleType:
    module = ModuleType("__main__")
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    sys.modules["__main__"] = module
    _show_only_frames_of_main()
    return module


def _show_only_frames_of_main() -> None:
    """A traceback starts in the script, as if it had been run directly."""
    show = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        path = getattr(sys.modules.get("__main__"), "__file__", None)
        start = trace
        while start is not None and start.tb_frame.f_code.co_filename != path:
            start = start.tb_next
        if start is None and not isinstance(error, SyntaxError):  # not the script's doing
            start = trace
        show(kind, error.with_traceback(start), start)

    sys.excepthook = excepthook


if __name__ == "__main__":
    main(sys.argv[1:])
