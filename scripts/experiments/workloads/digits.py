"""Sounds by their log-mel spectrograms with a small convolutional network.

`digits`: the Free Spoken Digit Dataset (fsdd.npz), 2700 recordings to train on and the official
300 to test; 12 epochs. One run takes 25 s on one core.
`urbansound8k`: the paper's audio data, for users who have it, with fold 10 to test on; its files
are read and resampled once per process (minutes), and it was tried on made-up files only.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from glue.errors import choose
from torch import Tensor, nn
from torch.utils.data import default_collate

from experiments import audio
from experiments.workload import Job, TrainerWorkload, accuracy, standard, with_loss


@dataclass(frozen=True, kw_only=True)
class Sounds(TrainerWorkload):
    """Test accuracy.

    Attributes:
        source: `digits` or `urbansound8k`.
        seconds: of each recording that count.
        bands: of the mel scale.
        width: channels of the first convolution.
    """

    name: str = "digits"
    metric: str = "accuracy"
    steps: int = 12 * 43
    defaults: Mapping[str, Any] = standard(schedule="linear", warmup=0.05, weight_decay=0.01)
    source: str = "digits"
    seconds: float = 1.0
    bands: int = 40
    width: int = 16
    batch_size: int = 64
    evaluations: int = 5

    def check(self) -> None:
        choose("source", self.source, audio.SOURCES)
        find, _ = audio.SOURCES[self.source]
        find(self.data_dir)

    def job(self) -> Job:
        spectra, labels, held_out = _spectra(self.source, self.data_dir, self.seconds, self.bands)
        rows = [{"spectra": s, "labels": label} for s, label in zip(spectra, labels, strict=True)]
        classes = int(labels.max()) + 1
        return Job(
            model=SoundClassifier(classes, self.width),
            train=list(itertools.compress(rows, held_out.logical_not())),
            evaluation=list(itertools.compress(rows, held_out)),
            collate=default_collate,
            compute_metrics=accuracy,
            score=lambda metrics: metrics["accuracy"],
            classes=classes,
        )


class SoundClassifier(nn.Module):
    """Four convolutions with batch norm, each but the last halving the picture; mean; linear."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        channels = [1, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        layers.pop()
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(channels[-1], classes)

    def forward(self, spectra: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (recordings, classes), and the `loss` where labels are given.

        `spectra` is (recordings, bands, frames).
        """
        hidden = self.features(spectra.unsqueeze(1)).mean(dim=(2, 3))
        return with_loss(self.classifier(self.dropout(hidden)), labels)


@functools.lru_cache(maxsize=2)
def _spectra(source: str, data_dir: str | None, seconds: float, bands: int) -> tuple[Tensor, ...]:
    """Spectrograms, labels, and whether each recording is held out."""
    find, load = audio.SOURCES[source]
    found = load(find(data_dir))
    spectra = audio.log_mel(found.waves, found.rate, seconds, bands)
    return spectra, torch.from_numpy(found.labels).long(), torch.from_numpy(found.held_out)
