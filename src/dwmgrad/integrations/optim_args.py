"""The names that `--optim` takes, and `--optim_args "key=value,..."`, typed and checked."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from numbers import Real
from typing import Any

from .. import arguments
from ..arguments import ARGUMENTS
from ..presets import PAPER, resolve

NAMES: dict[str, dict[str, Any]] = {
    "dwmgrad": {},
    "dwmgrad_finetune": {"preset": "finetune"},
    "dwmgrad_capped": {"preset": "capped"},
    "dwmgrad_auto": {"preset": "auto"},
    "dwmgrad_auto_bf16": {"preset": "auto", "state_dtype": "bfloat16"},
    "dwmgrad_auto_8bit": {"preset": "auto", "state_dtype": "int8"},
    "dwmgrad_bf16": {"state_dtype": "bfloat16"},
    "dwmgrad_8bit": {"state_dtype": "int8"},
}
"""Name: the arguments of DWMGrad that it stands for."""

OPTIM_ARGS: dict[str, Callable[[str], Any]] = {
    name: argument.kind.parse
    for name, argument in ARGUMENTS.items()
    if argument.kind is not None and argument.option == "optim_args"
}
"""What `--optim_args` may name, and how each value is read."""

_HAS_ITS_OWN = {
    name: argument.option
    for name, argument in ARGUMENTS.items()
    if argument.option not in (None, "optim_args")
} | {"learning_rate": "--learning_rate"}


def preset_of(optim: Any) -> dict[str, Any] | None:
    """What a name, as text or as transformers' enum has it, stands for; None if not one of ours."""
    name = getattr(optim, "value", optim)
    return NAMES.get(name) if isinstance(name, str) else None


def parse_optim_args(text: str | None) -> dict[str, Any]:
    """`"max_window=100,window_signal=decrease"` as keyword arguments of DWMGrad.

    Raises:
        ValueError: for an unknown or repeated key, a value that does not parse, or a missing '='.
    """
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"optim_args: write key=value, separated by commas, in one text, got {text!r}"
        )
    parsed: dict[str, Any] = {}
    for item in filter(None, "".join((text or "").split()).split(",")):
        key, equals, value = item.partition("=")
        if key in _HAS_ITS_OWN:
            raise ValueError(f"optim_args: {key!r} has an argument of its own, {_HAS_ITS_OWN[key]}")
        if not equals or key not in OPTIM_ARGS:
            near = "".join(f" did you mean {k}?" for k in get_close_matches(key, OPTIM_ARGS, n=1))
            raise ValueError(
                f"optim_args: {item!r} is not understood;{near} write key=value, separated by "
                f"commas, with the keys {', '.join(OPTIM_ARGS)}"
            )
        if key in parsed:
            raise ValueError(f"optim_args: {key!r} is given twice")
        try:
            parsed[key] = OPTIM_ARGS[key](value)
        except ValueError as error:
            raise ValueError(
                f"optim_args: {key} cannot be {value!r} ({error}); the keys are "
                f"{', '.join(OPTIM_ARGS)}"
            ) from None
    return parsed


def settings_of(args: Any) -> dict[str, Any] | None:
    """DWMGrad's arguments as `TrainingArguments` ask for them; None if for another optimizer.

    Raises:
        ValueError: for `optim_args` that are not understood, or that the name excludes.
    """
    preset = preset_of(args.optim)
    if preset is None:
        return None
    asked = parse_optim_args(args.optim_args)
    for key in preset.keys() & asked.keys():
        raise ValueError(
            f"optim_args: {key}={asked[key]} and --optim {getattr(args.optim, 'value', args.optim)}"
            f", which sets {key}={preset[key]}, exclude each other: use --optim dwmgrad"
        )
    return {"lr": args.learning_rate, "eps": args.adam_epsilon, **preset, **asked}


def check(args: Any) -> None:
    """Raises ValueError where DWMGrad will for these `TrainingArguments`, with the Trainer's names.

    Numbers of the Trainer's that are still text are left to the Trainer.
    """
    settings = settings_of(args)
    if settings is None:
        return
    whole = {name: None if name in PAPER else each.default for name, each in ARGUMENTS.items()}
    whole |= {
        name: value
        for name, value in settings.items()
        if name not in ("lr", "eps") or isinstance(value, Real)
    }
    try:
        arguments.check_new(resolve(whole))
    except (TypeError, ValueError) as error:
        name = str(error).split()[0]
        where = _HAS_ITS_OWN.get(name, "optim_args")
        raise ValueError(f"{where}: {error}") from None
