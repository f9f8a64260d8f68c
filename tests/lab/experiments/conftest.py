"""Tiny data of every kind, made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

NODES, FEATURES, CLASSES, KNOWN, TESTED = 620, 20, 3, 30, 60


def a_graph() -> dict[str, np.ndarray]:
    """Three groups of nodes; neighbours and features mostly agree on the group."""
    rng = np.random.default_rng(0)
    y = np.arange(NODES) % CLASSES
    features = (rng.random((NODES, FEATURES)) < 0.1).astype(np.float32)
    features[np.arange(NODES), y] = 1
    edges = {(u, u + CLASSES) for u in range(NODES - CLASSES)} | {(0, 1), (5, 10)}
    x = sp.csr_matrix(features)
    masks = {name: np.zeros(NODES, dtype=bool) for name in ("train", "val", "test")}
    masks["train"][:KNOWN] = masks["val"][KNOWN : KNOWN + 500] = True
    masks["test"][-TESTED:] = True
    return {
        "x_data": x.data,
        "x_indices": x.indices,
        "x_indptr": x.indptr,
        "x_shape": np.array(x.shape),
        "y": y,
        "edge_index": np.array(sorted(edges)).T,
        **{f"{name}_mask": mask for name, mask in masks.items()},
    }


@pytest.fixture(scope="session")
def cora_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cora")
    np.savez(folder / "cora.npz", **a_graph())
    return folder


@pytest.fixture(scope="session")
def images_dir(tmp_path_factory) -> Path:
    """Pictures of one colour per class, as PNG and, in the test file, as Hugging Face has them."""
    import io

    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("cifar10"), np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 20)):
        rows = []
        for row in range(count):
            pixels = np.full((32, 32, 3), 25 * (row % 10)) + rng.integers(0, 9, (32, 32, 3))
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, format="png")
            rows.append(file.getvalue())
        images = rows if split == "train" else [{"bytes": each, "path": None} for each in rows]
        table = pa.table({"img": images, "label": [row % 10 for row in range(count)]})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def tone(label: int, rate: int, length: int) -> np.ndarray:
    wave = np.sin(2 * np.pi * 200 * (label + 1) * np.arange(length) / rate)
    return (wave * 2**14).astype(np.int16)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory) -> Path:
    """Forty tones of ten pitches and uneven lengths."""
    folder = tmp_path_factory.mktemp("digits")
    waves = [tone(row % 10, 8000, 1000 + 250 * row) for row in range(40)]
    np.savez(
        folder / "fsdd.npz",
        audio=np.concatenate(waves),
        label=np.arange(40) % 10,
        offsets=np.cumsum([0, *map(len, waves)]),
        is_test=np.arange(40) >= 30,
        sample_rate=8000,
    )
    return folder


@pytest.fixture(scope="session")
def urbansound_dir(tmp_path_factory) -> Path:
    """Folds 1, 2 and 10 with wav files of several rates and depths, mono and stereo."""
    from scipy.io import wavfile

    folder = tmp_path_factory.mktemp("urban") / "UrbanSound8K"
    (folder / "metadata").mkdir(parents=True)
    lines = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for row in range(12):
        fold, label, rate = (1, 2, 10)[row % 3], row % 2, (8000, 22050, 44100)[row % 3]
        name = f"{row}-{label}-0-0.wav"
        wave = tone(label, rate, rate // 4)
        kinds = {0: wave, 1: np.stack([wave, wave], axis=1), 2: (wave // 256 + 128).astype("u1")}
        (folder / "audio" / f"fold{fold}").mkdir(parents=True, exist_ok=True)
        wavfile.write(folder / "audio" / f"fold{fold}" / name, rate, kinds[row // 3 % 3])
        lines.append(f"{name},1,0.0,0.25,1,{fold},{label},x")
    (folder / "metadata" / "UrbanSound8K.csv").write_text("\n".join(lines) + "\n")
    return folder.parent
