"""CIFAR-10 with the residual networks of He et al. 2015 (arXiv 1512.03385); macro F1.

`cifar10` is the paper's work, ResNet-110 (its target: F1 90.67 %), and needs a GPU: 64,000 steps
of 128 images with the steps of He et al. `cifar10-short` is ResNet-20 on the first 10,000 images
for 12 epochs: about 4.5 minutes on one core.

`data_dir` holds parquet files with the encoded images (PNG or JPEG) and `label`, as Hugging Face's
`cifar10` has them: train*.parquet and test*.parquet.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from glue.errors import UsageError
from torch import Tensor, nn

from experiments.workload import Job, TrainerWorkload, folder_of, standard, with_loss

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
PAD = 4


@dataclass(frozen=True, kw_only=True)
class Cifar10(TrainerWorkload):
    """Macro F1 on the test images; `metrics` also has the accuracy.

    Attributes:
        depth: of the network, 6n + 2.
        train_images, test_images: how many, from the files' start; None: all.
    """

    name: str = "cifar10"
    metric: str = "f1"
    steps: int = 64_000
    defaults: Mapping[str, Any] = standard(schedule="step", weight_decay=1e-4)
    decay_is_l2: ClassVar[bool] = True  # He et al. 2015
    depth: int = 110
    batch_size: int = 128
    train_images: int | None = None
    test_images: int | None = None
    evaluations: int = 20

    def check(self) -> None:
        for split in ("train", "test"):
            find_images(self.data_dir, split)

    def job(self) -> Job:
        return Job(
            model=ResNet(self.depth),
            train=load_images(self.data_dir, "train", self.train_images),
            evaluation=load_images(self.data_dir, "test", self.test_images),
            collate=functools.partial(collate, augment=True),
            collate_evaluation=collate,
            compute_metrics=_measure,
            score=lambda metrics: metrics["f1"],
            max_grad_norm=0.0,
        )


def _measure(outputs: Any) -> dict[str, float]:
    from sklearn.metrics import f1_score

    found, labels = outputs.predictions.argmax(axis=1), outputs.label_ids
    f1 = float(f1_score(labels, found, average="macro"))
    return {"f1": f1, "accuracy": float((found == labels).mean())}


_convolution = functools.partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)


class ResNet(nn.Module):
    """Three stages of n blocks with 16, 32 and 64 channels, shortcuts of option A.

    torchvision has those for ImageNet alone. `depth` must be 6n + 2: 20, 32, 44, 56, 110, ...
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6n + 2, as 20 or 110; got {depth}")
        widths = [16] + [channels for channels in (16, 32, 64) for _ in range(blocks)]
        self.features = nn.Sequential(
            _convolution(3, 16), nn.BatchNorm2d(16), nn.ReLU(), *map(Block, widths, widths[1:])
        )
        self.classifier = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        # on a CPU 1.3 times as fast (ResNet-20, batches of 128)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (images, classes), and the `loss` where labels are given.

        `pixel_values` is (images, 3, 32, 32).
        """
        return with_loss(self.classifier(self.features(pixel_values).mean(dim=(2, 3))), labels)


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; where channels grow, the picture halves."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.more = outputs - inputs
        self.first = _convolution(inputs, outputs, stride=2 if self.more else 1)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = _convolution(outputs, outputs)
        self.second_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.first_norm(self.first(x)))
        out = self.second_norm(self.second(out))
        if self.more:  # option A: every second pixel, new channels of zeros; no parameters
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.more))
        return F.relu(out + x)


def find_images(data_dir: str | None, split: str) -> list[Path]:
    """The parquet files of a split, whose names begin with it; a UsageError if there are none."""
    folder = folder_of(data_dir, "train*.parquet and test*.parquet with CIFAR-10's images")
    if files := sorted(folder.glob(f"{split}*.parquet")):
        return files
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise UsageError(f"--data_dir {data_dir}: there is no {split}*.parquet; found {found}")


@functools.lru_cache(maxsize=4)
def load_images(data_dir: str | None, split: str, limit: int | None) -> list[tuple[Tensor, int]]:
    """(image, label) for the first `limit` rows; an image is uint8 (3, 32, 32).

    Raises:
        UsageError: a column is missing, or an image is not what it should be.
    """
    from datasets import Image
    from pyarrow import parquet

    rows: list[tuple[Tensor, int]] = []
    for path in find_images(data_dir, split):
        table = parquet.read_table(path)
        named = [name for name in ("img", "image") if name in table.column_names]
        if not named or "label" not in table.column_names:
            raise UsageError(f"{path}: needs the columns img and label; has {table.column_names}")
        table = table.select([named[0], "label"])[: None if limit is None else limit - len(rows)]
        for row, (value, label) in enumerate(zip(*table.to_pydict().values(), strict=True)):
            try:
                data = value["bytes"] if isinstance(value, dict) else value
                image = np.array(Image(mode="RGB").decode_example({"bytes": data, "path": None}))
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise UsageError(f"{path}: row {row} is no image: {error}") from error
            if image.shape != (32, 32, 3) or label not in range(10):
                raise UsageError(f"{path}: row {row} is {image.shape}, label {label}")
            rows.append((torch.from_numpy(image).permute(2, 0, 1), int(label)))
    return rows


def collate(examples: list[tuple[Tensor, int]], augment: bool = False) -> dict[str, Tensor]:
    """`pixel_values` (images, 3, 32, 32), normalised, and `labels`."""
    images = torch.stack([image for image, _ in examples]).float() / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if augment:
        images = crop_and_flip(images)
    return {
        "pixel_values": images.contiguous(memory_format=torch.channels_last),
        "labels": torch.tensor([label for _, label in examples]),
    }


def crop_and_flip(images: Tensor) -> Tensor:
    """Each image padded by 4 zeros, cropped back at a random place, and flipped half of the time.

    `images` and the result are (images, channels, height, width). He et al. 2015, section 4.2.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (PAD, PAD, PAD, PAD))
    rows = torch.arange(height) + torch.randint(0, 2 * PAD + 1, (count, 1))
    columns = torch.arange(width) + torch.randint(0, 2 * PAD + 1, (count, 1))
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    each = torch.arange(count).view(-1, 1, 1)
    # indexing puts the channels last
    return padded[each, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
