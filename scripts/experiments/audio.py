"""Recordings to log-mel spectrograms, in plain torch; loaders for two data sets.

datasets' Audio feature would need torchcodec and FFmpeg, of which wav files need neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from glue.errors import UsageError, one_line
from torch import Tensor

from experiments.workload import folder_of


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


def find_digits(data_dir: str | None) -> Path:
    """fsdd.npz in `data_dir`, or a UsageError."""
    path = folder_of(data_dir, "fsdd.npz") / "fsdd.npz"
    if not path.is_file():
        raise UsageError(f"--data_dir {data_dir}: there is no fsdd.npz")
    return path


def load_digits(path: Path) -> Recordings:
    """The Free Spoken Digit Dataset as one npz, with its official test set.

    The npz has `audio` (int16, all recordings end to end), `offsets` (recording i is
    audio[offsets[i]:offsets[i + 1]]), `label`, `is_test`, `sample_rate`.
    """
    kinds, of = (OSError, KeyError, ValueError, BadZipFile), f"--data_dir: cannot read {path}: "
    with one_line(*kinds, of=of), np.load(path, allow_pickle=False) as data:
        audio = data["audio"].astype(np.float32) / 2**15
        waves = np.split(audio, data["offsets"][1:-1])
        return Recordings(waves, data["label"], data["is_test"], int(data["sample_rate"]))


def find_urbansound(data_dir: str | None) -> Path:
    """The folder with metadata/UrbanSound8K.csv and audio/fold1 to fold10, or a UsageError."""
    wanted = "metadata/UrbanSound8K.csv and audio/fold1 ... fold10"
    top = folder_of(data_dir, wanted)
    for folder in (top, top / "UrbanSound8K"):
        if (folder / "metadata" / "UrbanSound8K.csv").is_file() and (folder / "audio").is_dir():
            return folder
    raise UsageError(f"--data_dir {data_dir}: there is no {wanted}")


def load_urbansound(folder: Path, test_fold: int = 10, rate: int = 16_000) -> Recordings:
    """UrbanSound8K (Salamon et al. 2014), mixed to one channel and resampled to `rate`.

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


SOURCES: dict[str, tuple[Callable[..., Path], Callable[..., Recordings]]] = {
    "digits": (find_digits, load_digits),
    "urbansound8k": (find_urbansound, load_urbansound),
}
"""Name: what finds the data in `data_dir`, and what loads what was found."""
