"""The shapes of the parameters that bench_step.py gives to the optimizers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

Shapes = list[tuple[int, ...]]
SAMPLE = Path(__file__).resolve().parents[1] / "glue" / "sample"


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


def count(shapes: Shapes) -> int:
    """The number of parameters."""
    return sum(map(math.prod, shapes))
