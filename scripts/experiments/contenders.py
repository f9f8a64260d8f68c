"""The optimizers that are compared: how each is built and scheduled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pkgutil import resolve_name
from typing import Any

import torch
from glue.errors import UsageError, choose
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dwmgrad import limit, rule
from dwmgrad.presets import PRESETS
from dwmgrad.rule import SIGNALS

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    # a tenth at half of the steps and again at three quarters (He et al. 2015, section 4.2)
    "step": lambda progress: 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01,
}
"""Name: the factor on the learning rate, for the share of steps done after the warm-up."""


@dataclass(frozen=True)
class Contender:
    """One optimizer.

    Attributes:
        name: as in configurations.
        title: as in tables.
        path: its class, as "module:name".
        fixed: arguments that make it what it is; settings cannot change them.
        defaults: arguments that settings may change.
        schedule_free: it averages its weights in place of a schedule, does its own warm-up, and
            has `train()` and `eval()`, which the Trainer calls.
        decoupled: `weight_decay` shrinks the weights as in AdamW; else it is added to the
            gradient (L2).
        clips: it clips the gradients itself.
        rateless: it needs no learning rate.
        needs_loss: its `step` takes the loss.
    """

    name: str
    title: str
    path: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    schedule_free: bool = False
    decoupled: bool = False
    clips: bool = False
    rateless: bool = False
    needs_loss: bool = False

    @property
    def rule(self) -> str | int | None:
        """Which version of DWMGrad's rule its runs have; None: they have another rule."""
        if not self.name.startswith("dwmgrad"):
            return None
        limited = self.defaults.get("loss_limit") is not None
        return f"{rule.RULE_VERSION}, limit {limit.LIMIT_VERSION}" if limited else rule.RULE_VERSION

    def arguments(self, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """The optimizer's keyword arguments for `settings`, which `Workload.settings` completed.

        `ramp` is the share of the run over which a window grows, from 5 % of its bound on.
        """
        given = {k: v for k, v in settings.items() if k not in ("schedule", "warmup", "ramp")}
        if "ramp" in settings:
            most = max(1, round(settings["ramp"] * steps))
            given |= {"max_window": most, "initial_window": max(1, round(0.05 * most))}
        for name in sorted(given.keys() & self.fixed.keys()):
            raise TypeError(f"{name} is fixed to {self.fixed[name]!r}")
        own = {"warmup_steps": round(settings["warmup"] * steps)} if self.schedule_free else {}
        return {**own, **self.fixed, **given}

    def build(self, params: Iterable[Any], settings: Mapping[str, Any], steps: int) -> Optimizer:
        """The optimizer of `params` for a run of `steps` steps."""
        return resolve_name(self.path)(params, **self.arguments(settings, steps))

    def scheduler(self, optimizer: Any, settings: Mapping[str, Any], steps: int) -> LambdaLR:
        """Raises the learning rate over the warm-up, then follows the schedule over the rest."""
        warmup = 0 if self.schedule_free else round(settings["warmup"] * steps)
        shape = SCHEDULES[settings["schedule"]]

        def factor(step: int) -> float:
            if step < warmup:
                return step / warmup
            return shape(min(1.0, (step - warmup) / max(1, steps - warmup)))

        return LambdaLR(optimizer, factor)

    def check(self, settings: Mapping[str, Any], steps: int) -> None:
        """Build it once; a UsageError if its package is missing, or an argument is wrong."""
        try:
            self.build([torch.nn.Parameter(torch.zeros(1))], settings, steps)
        except ImportError as error:
            package = "momo-opt" if error.name == "momo" else error.name
            raise UsageError(f"{self.name}: {error}; pip install {package}") from error
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.name}: {error}") from error


_dwmgrad = partial(Contender, path="dwmgrad:DWMGrad", decoupled=True)
_adamw = partial(Contender, path="torch.optim:AdamW", decoupled=True)
_prodigy = partial(Contender, path="prodigyopt:Prodigy", decoupled=True, rateless=True)
_FUSED = {"fused": True}  # the fastest form, which `--optim adamw_torch_fused` takes, too
_MOMENTUM = {"momentum": 0.9}


def _preset(name: str, **options: Any) -> Contender:
    """DWMGrad with a preset, whose values are a run's settings: another preset is another run."""
    values = dict(PRESETS[name])
    if name != "finetune":  # the window follows the length of the run
        values.pop("max_window")
    defaults = {**values, **options.pop("defaults", {})}
    title, fixed = f"DWMGrad, preset {name}", {"preset": name}
    return _dwmgrad(f"dwmgrad-{name}", title, fixed=fixed, defaults=defaults, **options)


_ALL = (
    _preset("finetune"),
    *(_dwmgrad(f"dwmgrad-{s}", f"DWMGrad ({s})", fixed={"window_signal": s}) for s in SIGNALS),
    _adamw("adamw", "AdamW", fixed=_FUSED),
    Contender("adam", "Adam", "torch.optim:Adam", _FUSED),
    Contender("sgd", "SGD, momentum 0.9", "torch.optim:SGD", _FUSED, _MOMENTUM),
    Contender("rmsprop", "RMSprop, momentum 0.9", "torch.optim:RMSprop", {}, _MOMENTUM),
    Contender(
        "schedule-free-adamw",
        "Schedule-Free AdamW",
        "schedulefree:AdamWScheduleFree",
        schedule_free=True,
        decoupled=True,
    ),
    _preset("auto", rateless=True),
    _preset("capped", defaults={"auto_lr": False}),
    _dwmgrad(
        "dwmgrad-replayed",
        "DWMGrad with another run's window",
        path="experiments.replay:Replayed",
        fixed={"preset": "finetune"},
    ),
    _adamw(
        "adamw-guarded",
        "AdamW, guarded by the gradient's norm",
        path="experiments.broken:GuardedAdamW",
        fixed=_FUSED,
        clips=True,
    ),
    _adamw("adamw-control", "AdamW, betas 0.6 and 0.998", fixed={**_FUSED, "betas": (0.6, 0.998)}),
    Contender("momo-adam", "MoMo-Adam", "momo:MomoAdam", decoupled=True, needs_loss=True),
    _prodigy("prodigy", "Prodigy"),
    _prodigy(  # what its authors ask for with a warm-up, and recommend to those who fine-tune
        "prodigy-corrected",
        "Prodigy, safeguarded and corrected",
        fixed={"safeguard_warmup": True, "use_bias_correction": True},
    ),
)
CONTENDERS = {contender.name: contender for contender in _ALL}
"""Name: the optimizer."""


def get_contender(name: str) -> Contender:
    """The contender called `name`; a UsageError that lists them all if there is none."""
    choose("contender", name, CONTENDERS)
    return CONTENDERS[name]
