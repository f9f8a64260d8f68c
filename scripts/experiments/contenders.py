"""The optimizers that are compared: how each is built, and where its learning rate is sought."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from glue.errors import UsageError
from torch import Tensor
from torch.optim import Optimizer

from dwmgrad import DWMGrad, rule
from dwmgrad.rule import PRESETS, SIGNALS

PAPER_LR = 1e-3
"""The paper's one learning rate for all optimizers (arXiv 2510.25042)."""


@dataclass(frozen=True)
class Contender:
    """One optimizer.

    Attributes:
        name: as in configurations.
        title: as in tables.
        load: gives its class, when it is needed.
        fixed: arguments that make it what it is; settings cannot change them.
        defaults: arguments that settings may change.
        search: setting: {"low", "high", "log"}, for training from random weights; the bounds of
            a search whose log-uniform draws, say Optuna's `suggest_float(name, **bounds)`, take
            as they are.
        schedule_free: it averages its weights in place of a schedule, does its own warm-up, and
            has `train()` and `eval()`, which the Trainer calls.
        decoupled: `weight_decay` shrinks the weights as in AdamW; else it is added to the
            gradient (L2).
    """

    name: str
    title: str
    load: Callable[[], type[Optimizer]]
    search: Mapping[str, Mapping[str, Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    schedule_free: bool = False
    decoupled: bool = False

    @property
    def rule(self) -> int | None:
        """Which version of DWMGrad's rule its runs have; None: they have another rule."""
        return rule.RULE_VERSION if self.name.startswith("dwmgrad") else None

    def arguments(self, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """The optimizer's keyword arguments for `settings`, which `Workload.settings` completed."""
        given = {k: v for k, v in settings.items() if k not in ("schedule", "warmup")}
        clash = sorted(given.keys() & self.fixed.keys())
        if clash:
            raise UsageError(f"{self.name}: {clash[0]} is fixed to {self.fixed[clash[0]]!r}")
        own = {"warmup_steps": warmup_steps(settings, steps)} if self.schedule_free else {}
        return {**own, **self.fixed, **given}

    def schedule(self, settings: Mapping[str, Any], steps: int) -> tuple[str, int]:
        """The name of the schedule and the steps of warm-up, for `schedules.make_schedule`."""
        if self.schedule_free:
            return "constant", 0
        return settings["schedule"], warmup_steps(settings, steps)

    def build(
        self, params: Iterable[Tensor] | Iterable[dict], settings: Mapping[str, Any], steps: int
    ) -> Optimizer:
        """The optimizer of `params` for a run of `steps` steps."""
        kind: Any = self.load()
        return kind(params, **self.arguments(settings, steps))

    def check(self, settings: Mapping[str, Any], steps: int) -> None:
        """Build it once on one number.

        Raises:
            UsageError: its package is missing, or what it says about its arguments.
        """
        try:
            self.build([torch.nn.Parameter(torch.zeros(1))], settings, steps)
        except UsageError:
            raise
        except ImportError as error:
            raise UsageError(f"{self.name}: {error}; pip install {error.name}") from error
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.name}: {error}") from error


def warmup_steps(settings: Mapping[str, Any], steps: int) -> int:
    """The share `warmup` in whole steps."""
    return round(settings["warmup"] * steps)


def _schedule_free() -> type[Optimizer]:
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree


def _lr(low: float, high: float) -> dict[str, dict[str, Any]]:
    return {"lr": {"low": low, "high": high, "log": True}}


# torch's fused forms are what `--optim adamw_torch_fused` takes: the fastest of each.
CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        *(
            Contender(
                f"dwmgrad-{signal}",
                f"DWMGrad ({signal})",
                lambda: DWMGrad,
                _lr(1e-4, 3e-2),
                fixed={"window_signal": signal},
                decoupled=True,
            )
            for signal in SIGNALS
        ),
        Contender(
            "dwmgrad-finetune",
            "DWMGrad, preset finetune",
            lambda: DWMGrad,
            _lr(1e-4, 3e-2),
            fixed={"preset": "finetune"},
            defaults=PRESETS["finetune"],  # in a run's settings: another preset is another run
            decoupled=True,
        ),
        Contender(
            "adamw",
            "AdamW",
            lambda: torch.optim.AdamW,
            _lr(1e-4, 3e-2),
            fixed={"fused": True},
            decoupled=True,
        ),
        Contender("adam", "Adam", lambda: torch.optim.Adam, _lr(1e-4, 3e-2), fixed={"fused": True}),
        Contender(
            "sgd",
            "SGD, momentum 0.9",
            lambda: torch.optim.SGD,
            _lr(3e-3, 1.0),
            fixed={"fused": True},
            defaults={"momentum": 0.9},
        ),
        Contender(
            "rmsprop",
            "RMSprop, momentum 0.9",
            lambda: torch.optim.RMSprop,
            _lr(1e-5, 3e-3),
            defaults={"momentum": 0.9},
        ),
        Contender(
            "schedule-free-adamw",
            "Schedule-Free AdamW",
            _schedule_free,
            _lr(3e-4, 1e-1),
            schedule_free=True,
            decoupled=True,
        ),
    )
}


def get_contender(name: str) -> Contender:
    """The contender called `name`.

    Raises:
        UsageError: there is none; the message lists them all.
    """
    if name in CONTENDERS:
        return CONTENDERS[name]
    near = difflib.get_close_matches(name, CONTENDERS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"contender {name}: no such one.{hint} Choose from: {', '.join(CONTENDERS)}")
