"""The parts that the workloads are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from experiments.recording import signal_noise
from experiments.workloads.cifar10 import ResNet, collate, crop_and_flip, load_images
from experiments.workloads.digits import SoundClassifier, load_urbansound, log_mel, mel_filters
from experiments.workloads.language import whole_sentences
from glue.errors import UsageError

from dwmgrad.rule import Window


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (110, 1.7)])
def test_resnets_have_the_sizes_that_the_paper_gives(depth, millions):
    count = sum(p.numel() for p in ResNet(depth).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.035)
    with pytest.raises(ValueError, match="6n"):
        ResNet(21)


def test_gradients_have_their_parameters_strides():
    """torch's fused AdamW is wrong on CPUs where they differ."""
    sound = SoundClassifier(10, 4)(torch.randn(4, 40, 20), torch.arange(4))["loss"]
    image = collate([(torch.zeros(3, 32, 32, dtype=torch.uint8), 1)] * 4)
    network, other = ResNet(8), SoundClassifier(10, 4)
    sound = other(torch.randn(4, 40, 20), torch.arange(4))["loss"]
    (network(**image)["loss"] + sound).backward()
    for parameter in (*network.parameters(), *other.parameters()):
        assert parameter.grad.stride() == parameter.stride()


def test_crops_and_flips_are_windows_of_the_padded_image():
    image = torch.arange(3 * 32 * 32, dtype=torch.float32).view(1, 3, 32, 32) + 1
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))[0]
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32)
    seen = set()
    for found in crop_and_flip(image.expand(200, -1, -1, -1)):
        for flipped, version in enumerate((found, found.flip(2))):
            same = (windows == version[:, None, None]).all(dim=4).all(dim=3).all(dim=0)
            seen |= {(flipped, *place) for place in same.nonzero().tolist()}
    assert len(seen) > 100  # of 162


def test_images_are_normalised_and_kept_in_order(images_dir):
    rows = load_images(str(images_dir), "train", 12)
    assert len(rows) == 12 and [label for _, label in rows[:3]] == [0, 1, 2]
    batch = collate(rows)
    assert batch["pixel_values"].shape == (12, 3, 32, 32)
    white = collate([(torch.full((3, 32, 32), 255, dtype=torch.uint8), 0)])["pixel_values"]
    assert white[0, 0, 0, 0] == pytest.approx((1 - 0.4914) / 0.2470)


def test_a_file_without_images_is_told(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"img": [b"no image"], "label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(UsageError, match="row 0 is no image"):
        load_images(str(tmp_path), "train", None)


def test_an_image_without_a_label_is_told(images_dir, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (source,) = images_dir.glob("train*.parquet")
    table = pq.read_table(source).slice(0, 1)
    place = table.column_names.index("label")
    table = table.set_column(place, "label", pa.array([None], pa.int64()))
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UsageError, match="row 0 is .*label None"):
        load_images(str(tmp_path), "train", None)


def test_a_tone_lights_the_band_of_its_pitch():
    rate, filters = 8000, mel_filters(8000, 256, 40)
    assert filters.shape == (40, 129) and (filters >= 0).all() and filters.max() <= 1
    mels = log_mel(
        [
            np.sin(2 * np.pi * hz * np.arange(rate) / rate).astype(np.float32)
            for hz in (300, 1000, 3000)
        ],
        rate,
        1.0,
    )
    assert mels.shape[:2] == (3, 40)
    bands = mels.mean(dim=2).argmax(dim=1)
    peaks = filters.argmax(dim=1)[bands] * rate / 256
    for found, pitch in zip(peaks.tolist(), (300, 1000, 3000), strict=True):
        assert found == pytest.approx(pitch, rel=0.15)
    torch.testing.assert_close(mels.mean(dim=(1, 2)), torch.zeros(3), atol=1e-4, rtol=0)


def test_wave_files_of_every_kind_become_one_kind(urbansound_dir):
    found = load_urbansound(urbansound_dir / "UrbanSound8K")
    assert found.rate == 16000 and found.held_out.sum() == 4 and len(found.labels) == 12
    for wave in found.waves:
        assert wave.dtype == np.float32 and len(wave) == pytest.approx(4000, abs=4)
        assert 0.4 < np.abs(wave).max() < 0.7
    with pytest.raises(UsageError, match="fold 3"):
        load_urbansound(urbansound_dir / "UrbanSound8K", test_fold=3)


def test_phrases_that_are_part_of_others_are_left_out():
    phrases = ["a good film", "good film", "a good", "goo", "film a good", "a good film", "bad"]
    assert whole_sentences(phrases) == ["a good film", "film a good", "bad", "goo"]


def counted(losses, signal="decrease"):
    """How often the signal of these losses was positive, after each of them."""
    window, found = Window(signal=signal), []
    for loss in losses:
        window.observe(loss)
        found.append(window.increases)
    return found


def test_a_signal_without_noise_has_the_sign_of_the_trend():
    falling = [200.0 - step for step in range(120)]
    assert signal_noise(falling, counted(falling), "decrease") == 0
    assert signal_noise(falling, counted(falling, "increase"), "increase") == 0
    assert signal_noise(falling, counted(falling[::-1]), "decrease") == 1


def test_a_signal_of_pure_noise_is_wrong_half_of_the_time():
    noise = np.random.default_rng(0).normal(size=20_000)
    assert signal_noise(noise, counted(noise), "decrease") == pytest.approx(0.5, abs=0.02)


def test_a_smoothed_signal_of_pure_noise_is_wrong_a_little_less():
    """The ablations' page says how much less."""
    noise, window, positive = (
        np.random.default_rng(0).normal(size=20_000),
        Window(smoothing=0.9),
        [],
    )
    for loss in noise:
        window.observe(loss)
        positive.append(window.increases)
    assert signal_noise(noise, positive, "decrease") == pytest.approx(0.47, abs=0.01)


def test_a_true_signal_under_noise_is_seldom_called_noise():
    losses = np.random.default_rng(0).normal(size=20_000) - 0.1 * np.arange(20_000)
    always = list(range(1, 20_001))
    assert signal_noise(losses, always, "decrease") < 0.001
    assert signal_noise(losses, counted(losses), "decrease") == pytest.approx(0.47, abs=0.02)


def test_where_there_is_no_trend_the_noise_is_unknown():
    assert signal_noise([1.0] * 51, [0] * 51, "decrease") is None
    assert signal_noise([1.0] * 200, [0] * 200, "loss") is None
