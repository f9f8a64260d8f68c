"""What bench_step.py times: DWMGrad with each kernel and state, AdamW's forms, other libraries."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim import Optimizer

import dwmgrad.kernels
from bench.shapes import Shapes, count, elements
from dwmgrad import DWMGrad

SETTINGS: dict[str, Any] = {"lr": 1e-6, "weight_decay": 0.01}


@dataclass(frozen=True)
class Contender:
    """One way to make a step.

    Attributes:
        optimizer, kernel, state: its names in the table.
        make: builds the optimizer for some parameters.
        module: the module of a peer, to see whether it is installed.
        package: what to install for it.
        per_parameter: bytes of state and of temporaries for each parameter, estimated.
        per_largest: bytes of temporaries for each element of the largest tensor, estimated.
    """

    optimizer: str
    kernel: str
    state: str
    make: Callable[[list[Tensor]], Optimizer]
    module: str = "torch"
    package: str = "torch"
    per_parameter: float = 8
    per_largest: float = 0
    is_ours: bool = False

    def start(self, shapes: Shapes, device: str) -> tuple[Any, Callable[[], Any]]:
        """An optimizer on random parameters and gradients, and a function that makes its step."""
        params = [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer: Any = self.make(params)
        if not self.is_ours:
            return optimizer, optimizer.step
        # any loss will do; two values keep the window moving
        loss = itertools.cycle(torch.tensor([0.0, 1.0], device=device).unbind())
        return optimizer, lambda: optimizer.step(loss=next(loss))

    def bytes_needed(self, shapes: Shapes) -> float:
        """An estimate of the memory of parameters, gradients, state and temporaries."""
        largest = max(map(elements, shapes))
        return count(shapes) * (8 + self.per_parameter) + largest * self.per_largest

    def why_not(self, device: str) -> str | None:
        """Why it cannot run on this device; None if it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"not installed: pip install {self.package}"
        if not self.is_ours:
            return None
        if self.kernel == "one_launch" and not device.startswith("cuda"):
            return "needs CUDA"
        if self.kernel == "native" and device != "cpu":
            return "needs the CPU"
        used = kernels_of(self, device)
        if MODULES[self.kernel] in used:
            return None
        runs = " and ".join("loop" if name == "reference" else name for name in sorted(used))
        return f"{self.kernel} does not take {self.state} state here: {runs} would run instead"

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """What must hold while it runs: for the operator pair, the compiled kernels are away.

        As in a process that was started with DWMGRAD_NATIVE=0 and DWMGRAD_TRITON=0.
        """
        if not self.is_ours or self.kernel != "fused":
            yield
            return
        library = dwmgrad.kernels.native.library
        with mock.patch.dict(os.environ, DWMGRAD_NATIVE="0", DWMGRAD_TRITON="0"):
            library.cache_clear()
            try:
                yield
            finally:
                library.cache_clear()


# ---- DWMGrad ----

KERNELS: dict[str, dict[str, Any]] = {
    "native": {},
    "one_launch": {},
    "fused": {},
    "foreach": {"foreach": True},
    "loop": {"fused": False, "foreach": False},
}
"""The arguments that choose a kernel. The first two are the defaults, on the CPU and on CUDA."""
MODULES = {name: "reference" if name == "loop" else name for name in KERNELS}
"""The modules of `dwmgrad.kernels` that they are."""
STATES: dict[str, Any] = {"float32": None, "bfloat16": torch.bfloat16, "int8": "int8"}
_STATE_BYTES = {"float32": 8, "bfloat16": 4, "int8": 2.04}


def dwmgrad_with(kernel: str, state: str) -> Contender:
    """DWMGrad with one of `KERNELS` and one of `STATES`."""
    temporaries = 4 if kernel == "foreach" else 0
    loops = {"float32": 12, "bfloat16": 64, "int8": 80}[state] if kernel == "loop" else 0
    return Contender(
        "DWMGrad",
        kernel,
        state,
        lambda params: DWMGrad(params, **SETTINGS, state_dtype=STATES[state], **KERNELS[kernel]),
        per_parameter=_STATE_BYTES[state] + temporaries,
        per_largest=loops,
        is_ours=True,
    )


@cache
def kernels_of(contender: Contender, device: str) -> frozenset[str]:
    """The modules of `dwmgrad.kernels` that a DWMGrad's step runs, tried on one small matrix."""
    spies = {}
    with ExitStack() as stack:
        stack.enter_context(contender.conditions())
        for name in MODULES.values():
            module = importlib.import_module(f"dwmgrad.kernels.{name}")
            spy = mock.patch.object(module, "update", wraps=module.update)
            spies[name] = stack.enter_context(spy)
        _, step = contender.start([(128, 64)], device)
        step()  # the first one also compares kernels with each other
        for spy in spies.values():
            spy.reset_mock()
        step()
    return frozenset(name for name, spy in spies.items() if spy.called)


# ---- the others ----


def _adamw(**form: Any) -> Callable[[list[Tensor]], Optimizer]:
    return lambda params: torch.optim.AdamW(params, **SETTINGS, **form)


def _of(module: str, name: str) -> Callable[[list[Tensor]], Optimizer]:
    return lambda params: getattr(importlib.import_module(module), name)(params, **SETTINGS)


def _schedulefree(params: list[Tensor]) -> Optimizer:
    optimizer = _of("schedulefree", "AdamWScheduleFree")(params)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


REFERENCE = Contender("AdamW", "fused", "float32", _adamw(fused=True))
"""What every ratio refers to."""
PEERS = {
    "adamw-fused": REFERENCE,
    "adamw-foreach": Contender(
        "AdamW", "foreach", "float32", _adamw(foreach=True), per_parameter=12
    ),
    "adamw-loop": Contender(
        "AdamW", "loop", "float32", _adamw(foreach=False, fused=False), per_largest=12
    ),
    "bitsandbytes": Contender(
        "bitsandbytes AdamW8bit", "own", "int8", _of("bitsandbytes.optim", "AdamW8bit"),
        module="bitsandbytes", package="bitsandbytes", per_parameter=2.04, per_largest=24,
    ),
    "torchao": Contender(
        "torchao AdamW8bit", "own", "int8", _of("torchao.optim", "AdamW8bit"),
        module="torchao", package="torchao", per_largest=16,
    ),
    "optimi": Contender(
        "optimi AdamW", "own", "float32", _of("optimi", "AdamW"),
        module="optimi", package="torch-optimi", per_largest=12,
    ),
    "schedulefree": Contender(
        "AdamWScheduleFree", "own", "float32", _schedulefree,
        module="schedulefree", package="schedulefree", per_parameter=12,
    ),
}  # fmt: skip
"""The other optimizers, by the names that --peers takes."""
