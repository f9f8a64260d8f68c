"""The residual networks for CIFAR-10 of He et al. 2015 (arXiv 1512.03385), section 4.2.

torchvision has those for ImageNet alone.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.workload import with_loss

_convolution = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)


class ResNet(nn.Module):
    """Three stages of n blocks with 16, 32 and 64 channels, shortcuts of option A.

    `depth` must be 6n + 2: 20, 32, 44, 56, 110, ...
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
