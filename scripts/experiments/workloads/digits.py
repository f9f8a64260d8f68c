"""Sounds by their log-mel spectrograms with a small convolutional network.

`digits`: the Free Spoken Digit Dataset (fsdd.npz), 2700 recordings to train on and the official
300 to test; 12 epochs. One run takes 25 s on one core.
`urbansound8k`: the paper's audio data, for users who have it, with fold 10 to test on; its files
are read and resampled once per process (minutes), and it was tried on made-up files only.

They become log-mel spectrograms in plain torch: datasets' Audio feature would need torchcodec and
FFmpeg, of which wav files need neither.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from glue.errors import UsageError, choose, one_line
from torch import Tensor, nn

from experiments.workload import (
    Job,
    Rows,
    TrainerWorkload,
    accuracy,
    folder_of,
    standard,
    with_loss,
)


class Recordings(NamedTuple):
    """Sounds of one sample rate.

    Attributes:
        waves: one float32 array in [-1, 1] each, of any length.
        labels: (recordings,) class numbers.
        held_out: (recordings,) whether each belongs to the test set.
        rate: samples per second.
    """

    waves: list[np.ndarray]
    labels: np.ndarray
    held_out: np.ndarray
    rate: int


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
        choose("source", self.source, SOURCES)
        find(self.source, self.data_dir)

    def job(self) -> Job:
        spectra, labels, held_out = _spectra(self.source, self.data_dir, self.seconds, self.bands)
        train, test = (
            Rows(spectra=spectra[places], labels=labels[places]) for places in (~held_out, held_out)
        )
        classes = int(labels.max()) + 1
        return Job(
            model=SoundClassifier(classes, self.width),
            train=train,
            evaluation=test,
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
    found = SOURCES[source].load(find(source, data_dir))
    spectra = log_mel(found.waves, found.rate, seconds, bands)
    return spectra, torch.from_numpy(found.labels).long(), torch.from_numpy(found.held_out).bool()


def load_digits(folder: Path) -> Recordings:
    """The Free Spoken Digit Dataset with its official test set, as one npz, fsdd.npz.

    It has `audio` (int16, all recordings end to end), `offsets` (recording i is
    audio[offsets[i]:offsets[i + 1]]), `label`, `is_test`, `sample_rate`.
    """
    path = folder / "fsdd.npz"
    kinds, of = (OSError, KeyError, ValueError, BadZipFile), f"--data_dir: cannot read {path}: "
    with one_line(*kinds, of=of), np.load(path, allow_pickle=False) as data:
        audio = data["audio"].astype(np.float32) / 2**15
        waves = np.split(audio, data["offsets"][1:-1])
        return Recordings(waves, data["label"], data["is_test"], int(data["sample_rate"]))


def load_urbansound(folder: Path, test_fold: int = 10, rate: int = 16_000) -> Recordings:
    """UrbanSound8K (Salamon et al. 2014), mixed to one channel and resampled to `rate`.

    The folder has metadata/UrbanSound8K.csv and audio/fold1 to fold10.

    The test set is one of the data's 10 folds; recordings of one source are in one fold.
    """
    import pandas

    index = folder / "metadata" / "UrbanSound8K.csv"
    with one_line(KeyError, ValueError, TypeError, of=f"{index}: lacks or garbles "):
        table = pandas.read_csv(index).astype({"fold": int, "classID": int})
        places = zip(table["fold"], table["slice_file_name"], strict=True)
        paths = [folder / "audio" / f"fold{fold}" / name for fold, name in places]
    held_out = (table["fold"] == test_fold).to_numpy()
    if held_out.all() or not held_out.any():
        raise UsageError(f"{folder}: fold {test_fold} must hold some recordings, and not all")
    waves = [read_wave(path, rate) for path in paths]
    return Recordings(waves, table["classID"].to_numpy(), held_out, rate)


def read_wave(path: Path, rate: int) -> np.ndarray:
    """A wav file as one channel of float32 in [-1, 1], at `rate` samples per second.

    With the package soundfile, if it is installed, also compressed and other formats.
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    try:
        try:
            import soundfile

            samples, found = soundfile.read(path, dtype="float32")
        except ImportError:
            found, samples = wavfile.read(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"cannot read {path}: {error} (pip install soundfile?)") from error
    kind = samples.dtype
    if kind == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif kind.kind == "i":
        samples = samples.astype(np.float32) / -float(np.iinfo(kind).min)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if found != rate:
        samples = resample_poly(samples, rate, found)
    return samples.astype(np.float32)


def log_mel(waves: list[np.ndarray], rate: int, seconds: float, bands: int = 40) -> Tensor:
    """Log-mel spectrograms of the first `seconds`, shorter ones filled with silence.

    Windows of 32 ms, 16 ms apart. Each spectrogram is shifted and scaled to mean 0, deviation 1.

    Returns:
        (recordings, bands, frames), float32.
    """
    window = 2 ** round(math.log2(0.032 * rate))
    filters, hann = mel_filters(rate, window, bands), torch.hann_window(window)
    length = int(seconds * rate)
    result = []
    for start in range(0, len(waves), 256):  # in parts: the spectra are larger than the sounds
        batch = torch.zeros(len(waves[start : start + 256]), length)
        for row, wave in enumerate(waves[start : start + 256]):
            batch[row, : len(wave)] = torch.from_numpy(wave[:length])
        spectrum = torch.stft(
            batch, window, window // 2, window=hann, return_complex=True, pad_mode="constant"
        )
        result.append(torch.log(filters @ spectrum.abs().square() + 1e-6))
    mels = torch.cat(result)
    mean, deviation = mels.mean(dim=(1, 2), keepdim=True), mels.std(dim=(1, 2), keepdim=True)
    return (mels - mean) / (deviation + 1e-5)


def mel_filters(rate: int, window: int, bands: int) -> Tensor:
    """(bands, window // 2 + 1) triangles, evenly spaced in mel: 2595 · log10(1 + f / 700 Hz).

    transformers' `mel_filter_bank` differs by 5e-6, enough to move the committed scores by 1 %.
    """
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    bins = torch.linspace(0, rate / 2, window // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0)


class Source(NamedTuple):
    """Sounds that can be had.

    Attributes:
        load: what loads it from its folder.
        needs: what must be there.
        folder: where it may lie in `data_dir`, beside `data_dir` itself.
    """

    load: Callable[[Path], Recordings]
    needs: tuple[str, ...]
    folder: str = "."


SOURCES = {
    "digits": Source(load_digits, ("fsdd.npz",)),
    "urbansound8k": Source(load_urbansound, ("metadata/UrbanSound8K.csv", "audio"), "UrbanSound8K"),
}


def find(source: str, data_dir: str | None) -> Path:
    """The folder with a source's files, or a UsageError."""
    _, needs, inner = SOURCES[source]
    wanted = " and ".join(needs)
    top = folder_of(data_dir, wanted)
    for folder in (top, top / inner):
        if all((folder / name).exists() for name in needs):
            return folder
    raise UsageError(f"--data_dir {data_dir}: there is no {wanted}")
