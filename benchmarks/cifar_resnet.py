"""The ResNets for 32 px images of He et al. (2016, arXiv 1512.03385, section 4.2), in the two forms whose weights are
published: with convolutions beside a change of width (chenyaofo's CIFAR-100 weights), and without parameters there
(option A of the paper; Idelbayev's CIFAR-10 weights).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Shortcut = Literal["convolution", "padding"]

CHANNELS = (16, 32, 64)
STATISTICS = {
    "convolution": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    "padding": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation that images were normalised with when the published weights of that form were trained."""


def build(num_classes: int = 100, *, depth: int = 56, shortcut: Shortcut = "convolution") -> nn.Module:
    """A ResNet of ``depth`` layers: 6n + 2, so 20, 32, 44, 56 or 110.

    Args:
        num_classes: K.
        depth: layers with weights, shortcuts left aside.
        shortcut: what stands beside the blocks that halve the grid and double the channels: a 1x1 convolution with
            batch norm and the classifier ``fc``, or every other position padded with zero channels and ``linear``.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth {depth} is not 6n + 2")
    return CifarResNet(num_classes, (depth - 2) // 6, shortcut)


class CifarResNet(nn.Module):
    """Three stages of ``num_blocks`` blocks with 16, 32 and 64 channels on grids of 32, 16 and 8."""

    def __init__(self, num_classes: int, num_blocks: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, CHANNELS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(CHANNELS[0], CHANNELS[0], num_blocks, shortcut)
        self.layer2 = _stage(CHANNELS[0], CHANNELS[1], num_blocks, shortcut)
        self.layer3 = _stage(CHANNELS[1], CHANNELS[2], num_blocks, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier_name = "fc" if shortcut == "convolution" else "linear"
        self.add_module(self.classifier_name, nn.Linear(CHANNELS[2], num_classes))
        mean, std = STATISTICS[shortcut]
        # what timm reads a network's preprocessing from
        self.pretrained_cfg = {"input_size": (3, 32, 32), "mean": mean, "std": std, "crop_pct": 1.0}

    def get_classifier(self) -> nn.Module:
        """The classifier, by the name that timm's networks give it."""
        return self.get_submodule(self.classifier_name)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.get_classifier()(torch.flatten(self.avgpool(hidden), 1))


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = _convolution(in_channels, channels, stride) if shortcut == "convolution" else Padding()

    def forward(self, images: Tensor) -> Tensor:
        shortcut = images if self.downsample is None else self.downsample(images)
        hidden = self.relu(self.bn1(self.conv1(images)))
        return self.relu(self.bn2(self.conv2(hidden)) + shortcut)


class Padding(nn.Module):
    """Every other row and column, with half as many channels of zeros on either side: ``(B, C, H, W)`` to
    ``(B, 2 C, H / 2, W / 2)``.
    """

    def forward(self, images: Tensor) -> Tensor:
        on_each_side = images.shape[1] // 2
        return functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, on_each_side, on_each_side))


def _convolution(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


def _stage(in_channels: int, channels: int, num_blocks: int, shortcut: Shortcut) -> nn.Sequential:
    first = Block(in_channels, channels, 1 if in_channels == channels else 2, shortcut)
    return nn.Sequential(first, *(Block(channels, channels, 1, shortcut) for _ in range(num_blocks - 1)))
