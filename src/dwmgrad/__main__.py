"""`python -m dwmgrad SCRIPT ARGS`: runs an unmodified script that knows `--optim dwmgrad`."""

from __future__ import annotations

import builtins
import os
import runpy
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType
from typing import Any

from . import __version__, startup
from .arguments import ARGUMENTS
from .integrations.optim_args import NAMES, OPTIM_ARGS

USAGE = """\
usage: python -m dwmgrad SCRIPT [ARGS ...]
       python -m dwmgrad -m MODULE [ARGS ...]
       accelerate launch [OPTIONS] -m dwmgrad SCRIPT [ARGS ...]      (or -m MODULE)
       torchrun [OPTIONS] -m dwmgrad SCRIPT [ARGS ...]               (or -m MODULE)
       python -m dwmgrad --version

Runs SCRIPT as `python SCRIPT ARGS` does, or MODULE as `python -m MODULE ARGS` does. In addition,
the script's TrainingArguments and HfArgumentParser take

  --optim {names}
  --optim_args "max_window=100,window_signal=decrease", with these keys:
{keys}

With dwmgrad_finetune, --learning_rate, --weight_decay and --adam_epsilon mean what they mean for
AdamW. With dwmgrad_capped the learning rate is a ceiling; dwmgrad_auto needs none. The Trainer
brings its loss to the optimizer by itself, and logs window and effective_momentum.

Python processes that SCRIPT starts (ranks, workers, launched trainings) know the names through
PYTHONPATH. Processes under `python -I`, `-E` or `-S`, or with a PYTHONPATH of their own, do not:
write `import dwmgrad` in their code.

examples:
  python -m dwmgrad run_glue.py --optim dwmgrad_finetune --task_name mrpc ...
  python -m dwmgrad -m trl.scripts.sft --optim dwmgrad_finetune ...
  python -m dwmgrad "$(command -v trl)" sft --optim dwmgrad_finetune ...
"""

_HELP = {"-h", "--help", "--version", "-V"}


def main(arguments: list[str]) -> None:
    """Runs the script in `arguments[0]`, or the module after `-m`, with the rest as arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        keys = "\n".join(f"      {key:22}{ARGUMENTS[key].help}" for key in OPTIM_ARGS)
        usage = USAGE.format(names="|".join(NAMES), keys=keys)
        print(usage, end="", file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("-V", "--version"):
        print(f"dwmgrad {__version__}")
        sys.exit(0)
    is_module = arguments[0] == "-m"
    command = arguments[is_module:]
    wrong = _mistake(command, is_module)
    if wrong:
        print(f"python -m dwmgrad: {wrong}", file=sys.stderr)
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
                f"python -m dwmgrad: {command[0]} has ended without creating a DWMGrad: one that "
                "trains needs --optim dwmgrad_finetune, and a Trainer that gets these arguments",
                file=sys.stderr,
            )


def _mistake(command: list[str], is_module: bool) -> str | None:
    """What is wrong with the name of the script or module."""
    if not command:
        return "-m needs the name of a module after it"
    if is_module or os.path.isfile(command[0]):
        return None
    if command[0].startswith("-"):
        return f"cannot run {command[0]!r}: give the script before its arguments"
    reason = "not a file" if os.path.exists(command[0]) else "no such file"
    return f"cannot run {command[0]!r}: {reason}"


def _run_script(command: list[str]) -> None:
    path = os.path.abspath(command[0])
    sys.argv = command
    if not (getattr(sys.flags, "safe_path", False) or sys.flags.isolated):
        # `python -m` put the working directory here, `python SCRIPT` would have put the script's.
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    # Not runpy.run_path: it writes sys.argv[0], and takes `__main__` away again at the end.
    module = _new_main()
    module.__file__ = path
    module.__loader__ = SourceFileLoader("__main__", path)
    module.__cached__ = None  # type: ignore[attr-defined]
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
    module.__annotations__ = {}
    sys.modules["__main__"] = module
    _show_only_frames_of_main()
    return module


def _show_only_frames_of_main() -> None:
    """A traceback starts in the script, as if it had been run directly."""
    show = sys.excepthook

    def excepthook(kind: Any, error: BaseException, trace: Any) -> None:
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
