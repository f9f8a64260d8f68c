"""What bench_step.py times: DWMGrad with each kernel and state, other optimizers, and shapes."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest import mock

import torch

import dwmgrad.kernels

Shapes = list[tuple[int, ...]]
SAMPLE = Path(__file__).resolve().parents[1] / "glue" / "sample"
SETTINGS: dict[str, Any] = {"lr": 1e-6, "weight_decay": 0.01}
DWMGRAD = "dwmgrad:DWMGrad"
DEFAULT = "default"
"""What DWMGrad takes by itself: native on the CPU, one_launch on CUDA, where they are."""


def count(shapes: Shapes) -> int:
    """The number of parameters."""
    return sum(map(math.prod, shapes))


@dataclass(frozen=True)
class TimedOptimizer:
    """One way to make a step.

    Attributes:
        optimizer, kernel, state: its names in the table.
        path: the class, as "module:name".
        estimate: bytes of state and of temporaries for each parameter, and of temporaries for each
            element of the largest tensor.
        arguments: for the class, besides the settings that all have.
        package: what to install for it, where its name is not the module's.
    """

    optimizer: str
    kernel: str
    state: str
    path: str
    estimate: tuple[float, ...] = (8, 0)
    arguments: dict[str, Any] = field(default_factory=dict)
    package: str = ""

    def start(self, shapes: Shapes, device: str) -> tuple[Any, Callable[[], Any]]:
        """An optimizer on random parameters and gradients, and a function that makes its step."""
        params = [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer = resolve_name(self.path)(params, **SETTINGS, **self.arguments)
        if hasattr(optimizer, "train"):  # schedule-free ones
            optimizer.train()
        if self.path != DWMGRAD:
            return optimizer, optimizer.step
        # any loss will do; two values keep the window moving
        loss = itertools.cycle(torch.tensor([0.0, 1.0], device=device).unbind())
        return optimizer, lambda: optimizer.step(loss=next(loss))

    def bytes_needed(self, shapes: Shapes) -> float:
        """An estimate of the memory of parameters, gradients, state and temporaries."""
        largest = max(map(math.prod, shapes))
        per_parameter, per_largest = self.estimate
        return count(shapes) * (8 + per_parameter) + largest * per_largest

    def why_not(self, device: str) -> str | None:
        """Why it cannot run on this device; None if it can."""
        package = self.path.partition(":")[0].partition(".")[0]
        if importlib.util.find_spec(package) is None:
            return f"not installed: pip install {self.package or package}"
        if self.path != DWMGRAD or self.kernel == DEFAULT:
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
        with ExitStack() as stack:
            if self.path == DWMGRAD and self.kernel == "fused":
                for kernel in (dwmgrad.kernels.native, dwmgrad.kernels.one_launch):
                    stack.enter_context(mock.patch.object(kernel, "accepts", lambda *_: False))
            yield


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
_LOOP_BYTES = {"float32": 12, "bfloat16": 64, "int8": 80}


def dwmgrad_with(kernel: str, state: str) -> TimedOptimizer:
    """DWMGrad with one of `KERNELS`, or `DEFAULT`, and one of `STATES`."""
    per_parameter = _STATE_BYTES[state] + (4 if kernel == "foreach" else 0)
    per_largest = _LOOP_BYTES[state] if kernel == "loop" else 0
    form = {"state_dtype": STATES[state], **({} if kernel == DEFAULT else KERNELS[kernel])}
    return TimedOptimizer("DWMGrad", kernel, state, DWMGRAD, (per_parameter, per_largest), form)


def kernels_of(timed: TimedOptimizer, device: str) -> set[str]:
    """The modules of `dwmgrad.kernels` that a DWMGrad's step runs, tried on one small matrix."""
    spies = {}
    with ExitStack() as stack:
        stack.enter_context(timed.conditions())
        for name in MODULES.values():
            module = importlib.import_module(f"dwmgrad.kernels.{name}")
            spy = mock.patch.object(module, "update", wraps=module.update)
            spies[name] = stack.enter_context(spy)
        _, step = timed.start([(128, 64)], device)
        step()  # the first one also compares kernels with each other
        for spy in spies.values():
            spy.reset_mock()
        step()
    return {name for name, spy in spies.items() if spy.called}


# ---- the others ----


def _adamw(kernel: str, *estimate: float) -> TimedOptimizer:
    form = {"fused": kernel == "fused", "foreach": kernel == "foreach"}
    return TimedOptimizer("AdamW", kernel, "float32", "torch.optim:AdamW", estimate, form)


def _own(name: str, state: str, path: str, *estimate: float, package: str = "") -> TimedOptimizer:
    return TimedOptimizer(name, "own", state, path, estimate, package=package)


REFERENCE = _adamw("fused", 8, 0)
"""What every ratio refers to."""
PEERS = {
    "adamw-fused": REFERENCE,
    "adamw-foreach": _adamw("foreach", 12, 0),
    "adamw-loop": _adamw("loop", 8, 12),
    "loss-limit": TimedOptimizer(
        "DWMGrad, loss_limit",
        DEFAULT,
        "float32",
        DWMGRAD,
        (8, 0),
        {"preset": "finetune", "loss_limit": 0.5, "loss_floor": -1.0},
    ),
    "bitsandbytes": _own(
        "bitsandbytes AdamW8bit", "int8", "bitsandbytes.optim:AdamW8bit", 2.04, 24
    ),
    "torchao": _own("torchao AdamW8bit", "int8", "torchao.optim:AdamW8bit", 8, 16),
    "optimi": _own("optimi AdamW", "float32", "optimi:AdamW", 8, 12, package="torch-optimi"),
    "schedulefree": _own("AdamWScheduleFree", "float32", "schedulefree:AdamWScheduleFree", 12, 0),
}
"""What is timed beside DWMGrad's kernels and states, by the names that --peers takes."""


# ---- the shapes of the parameters that they are given ----


def roberta(
    hidden: int, layers: int, intermediate: int, vocabulary: int = 50265, positions: int = 514
) -> Shapes:
    """RoBERTa for the classification of sequences into two classes."""
    linear: Shapes = [(hidden, hidden), (hidden,)]
    norm: Shapes = [(hidden,), (hidden,)]
    wide: Shapes = [(intermediate, hidden), (intermediate,), (hidden, intermediate), (hidden,)]
    embeddings: Shapes = [(vocabulary, hidden), (positions, hidden), (1, hidden)]
    layer = [*linear * 4, *wide, *norm * 2]
    return [*embeddings, *norm, *layer * layers, *linear, (2, hidden), (2,)]


def demo() -> Shapes:
    """The demo's model, from the sample's config."""
    sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    config = json.loads((SAMPLE / "config.json").read_text())
    return roberta(*(config[name] for name in (*sizes, "max_position_embeddings")))


def lora(hidden: int, layers: int, rank: int = 8) -> Shapes:
    """The adapters A and B of each layer's query and value."""
    return [(rank, hidden), (hidden, rank)] * (2 * layers)


def decoder() -> Shapes:
    """Llama 3.2 1B: 16 layers of 2048, grouped keys and values, tied embeddings."""
    hidden, wide, narrow = 2048, 8192, 512
    attention: Shapes = [(hidden, hidden), (narrow, hidden), (narrow, hidden), (hidden, hidden)]
    gated: Shapes = [(wide, hidden), (wide, hidden), (hidden, wide)]
    return [(128256, hidden), *[*attention, *gated, (hidden,), (hidden,)] * 16, (hidden,)]


SHAPES: dict[str, Callable[[], Shapes]] = {
    "demo": demo,
    "100m": lambda: [(2500, 1000)] * 40,
    "roberta-base": lambda: roberta(768, 12, 3072),
    "roberta-large": lambda: roberta(1024, 24, 4096),
    "lora": lambda: [(8, 768), (768, 8)] * 200,
    "lora-base-r8": lambda: lora(768, 12),
    "lora-large-r8": lambda: lora(1024, 24),
    "decoder-1b": decoder,
    "tiny": lambda: [(64, 64), (64,), (8, 16)],
}
"""`tiny` is there to try the script itself."""
