"""Sounds by their log-mel spectrograms with a small convolutional network.

`digits`: the Free Spoken Digit Dataset (fsdd.npz), 2700 recordings to train on and the official
300 to test; 12 epochs. One run takes 25 s on one core.
`urbansound8k`: the paper's audio data, for users who have it, with fold 10 to test on; its files
are read and resampled once per process (minutes), and it was tried on made-up files only.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments import audio
from experiments.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Sounds(Workload):
    """Test accuracy.

    Attributes:
        source: `digits` or `urbansound8k`.
        seconds: of each recording that count.
        bands: of the mel scale.
        width: channels of the first convolution.
        batch_size: recordings per step.
        evaluations: how often the score is taken.
    """

    name: str = "digits"
    metric: str = "accuracy"
    higher_is_better: bool = True
    steps: int = 12 * 43
    defaults: Mapping[str, Any] = field(
        default_factory=lambda: {"schedule": "linear", "warmup": 0.05, "weight_decay": 0.01}
    )
    source: str = "digits"
    seconds: float = 1.0
    bands: int = 40
    width: int = 16
    batch_size: int = 64
    evaluations: int = 5

    def check(self) -> None:
        if self.source == "digits":
            audio.find_digits(self.data_dir)
        else:
            audio.find_urbansound(self.data_dir)

    def run(self, contender: str, settings: Mapping[str, Any], seed: int, folder: Path) -> dict:
        from transformers import set_seed

        from experiments.training import Job, train

        settings = self.settings(contender, settings)
        spectra, labels, held_out = _spectra(
            self.source, str(self.data_dir), self.seconds, self.bands
        )
        examples = [
            {"spectra": spectrum, "labels": label}
            for spectrum, label in zip(spectra, labels, strict=True)
        ]
        set_seed(seed)
        job = Job(
            model=SoundClassifier(int(labels.max()) + 1, self.width),
            train=[example for example, out in zip(examples, held_out, strict=True) if not out],
            evaluation=[example for example, out in zip(examples, held_out, strict=True) if out],
            collate=collate,
            compute_metrics=_accuracy,
            score=lambda metrics: metrics["accuracy"],
        )
        return train(
            job, contender, settings, seed, folder, steps=self.steps, batch_size=self.batch_size,
            evaluations=self.evaluations,
        )  # fmt: skip


class SoundClassifier(nn.Module):
    """Four convolutions with batch norm, each but the last halving the picture; mean; linear."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        channels = [1, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for place in range(4):
            convolution = nn.Conv2d(channels[place], channels[place + 1], 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels[place + 1]), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if place < 3 else []
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(channels[-1], classes)

    def forward(self, spectra: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (recordings, classes), and the `loss` where labels are given.

        `spectra` is (recordings, bands, frames).
        """
        hidden = self.features(spectra.unsqueeze(1)).mean(dim=(2, 3))
        logits = self.classifier(self.dropout(hidden))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack a batch."""
    return {name: torch.stack([each[name] for each in examples]) for name in examples[0]}


@functools.lru_cache(maxsize=2)
def _spectra(
    source: str, data_dir: str, seconds: float, bands: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Spectrograms, labels, and whether each recording is held out."""
    if source == "digits":
        found = audio.load_digits(audio.find_digits(data_dir))
    else:
        found = audio.load_urbansound(audio.find_urbansound(data_dir))
    spectra = audio.log_mel(found.waves, found.rate, seconds, bands)
    return spectra, torch.from_numpy(found.labels).long(), torch.from_numpy(found.held_out)


def _accuracy(outputs: Any) -> dict[str, float]:
    hits = outputs.predictions.argmax(axis=1) == outputs.label_ids
    return {"accuracy": float(hits.mean())}


def brief(data_dir: str | None, **options: Any) -> Sounds:
    """The form for a sweep: half the width, 6 epochs."""
    values: dict[str, Any] = {
        "name": "digits-brief", "width": 8, "steps": 6 * 43, "evaluations": 6,
    }  # fmt: skip
    return Sounds(**{**values, **options}, data_dir=data_dir)


def urbansound8k(data_dir: str | None, **options: Any) -> Sounds:
    """The paper's audio data: 10 classes of city sounds, 4 s each, 20 epochs."""
    values: dict[str, Any] = {
        "name": "urbansound8k", "source": "urbansound8k", "seconds": 4.0, "bands": 64,
        "width": 32, "steps": 20 * 124,
    }  # fmt: skip
    return Sounds(**{**values, **options}, data_dir=data_dir)
