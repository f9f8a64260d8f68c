"""Times the optimizer's step against torch's fused AdamW, in pairs in one process.

  python scripts/bench_step.py --shapes demo 100m --output bench.json

Each pair steps both optimizers once on the same gradients, in alternating order; the ratio of a
pair is DWMGrad / AdamW. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dwmgrad import DWMGrad, __version__


def demo() -> list[tuple[int, ...]]:
    """The shapes of the demo's model, read from the config inside the package."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    import dwmgrad.glue

    sample = Path(dwmgrad.glue.__file__).parent / "sample"
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(sample))
    return [tuple(p.shape) for p in model.parameters()]


def roberta_base() -> list[tuple[int, ...]]:
    """RoBERTa-base: 12 layers of 768, 124.6 M parameters."""
    layer = [(768, 768), (768,)] * 4 + [(3072, 768), (3072,), (768, 3072), (768,)] + [(768,)] * 4
    head = [(768, 768), (768,), (2, 768), (2,)]
    return [(50265, 768), (514, 768), (1, 768), (768,), (768,), *(layer * 12), *head]


Shapes = list[tuple[int, ...]]
SHAPES: dict[str, Callable[[], Shapes]] = {
    "demo": demo,
    "100m": lambda: [(2500, 1000)] * 40,
    "roberta-base": roberta_base,
    "lora": lambda: [(8, 768), (768, 8)] * 200,
}
KERNELS: dict[str, dict[str, Any]] = {
    "fused": {},
    "loop": {"fused": False, "foreach": False},
    "foreach": {"foreach": True},
}


def compare(shapes: Shapes, kernel: str, pairs: int, device: str) -> dict:
    """Times `pairs` pairs of steps; milliseconds, and the median ratio with its quartiles."""

    def parameters() -> list[torch.Tensor]:
        params = [torch.randn(shape, device=device).requires_grad_() for shape in shapes]
        for param in params:
            param.grad = torch.randn_like(param)
        return params

    ours = DWMGrad(parameters(), lr=1e-6, weight_decay=0.01, **KERNELS[kernel])
    adamw = torch.optim.AdamW(parameters(), lr=1e-6, fused=True)
    loss = itertools.cycle([0.0, 1.0])  # any loss will do; two values keep the window moving
    steps = [lambda: ours.step(loss=next(loss)), adamw.step]
    times: list[list[float]] = [[], []]
    for pair in range(-3, pairs):
        for which in (0, 1) if pair % 2 else (1, 0):
            synchronize(device)
            start = time.perf_counter()
            steps[which]()
            synchronize(device)
            if pair >= 0:
                times[which].append(1e3 * (time.perf_counter() - start))
    ratios = [a / b for a, b in zip(*times, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "dwmgrad_ms": statistics.median(times[0]),
        "adamw_fused_ms": statistics.median(times[1]),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [low, high],
    }


def synchronize(device: str) -> None:
    """Waits for the device, so that a step's time is its own."""
    if device != "cpu":
        torch.accelerator.synchronize()


def main() -> None:
    """Runs the chosen rows and prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=["fused"])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON")
    options = parser.parse_args()
    rows = []
    print("| shapes | parameters | tensors | kernel | DWMGrad ms | AdamW fused ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in options.shapes:
        shapes = SHAPES[name]()
        count = sum(torch.Size(shape).numel() for shape in shapes)
        for kernel in options.kernels:
            row = compare(shapes, kernel, options.pairs, options.device)
            rows.append({"shapes": name, "parameters": count, "kernel": kernel, **row})
            print(
                f"| {name} | {count:,} | {len(shapes)} | {kernel} | {row['dwmgrad_ms']:.2f} "
                f"| {row['adamw_fused_ms']:.2f} | {row['ratio']:.2f} "
                f"({row['ratio_quartiles'][0]:.2f} to {row['ratio_quartiles'][1]:.2f}) |",
                flush=True,
            )
    if options.output:
        machine = {
            "device": options.device,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "dwmgrad": __version__,
        }
        options.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
