"""OFA's exit branches: from one stage of the student to logits in the teacher's classes.

A branch of stage i of n (from 1) makes up for the depth that the feature has not passed yet: n - i reductions for
maps, at least one transformer block for tokens. Published for n = 4.

Source: Hao, Guo, Han, Tang, Hu, Wang, Xu, NeurIPS 2023, arXiv 2310.19444, in the layers of the released code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from crossdistill.bridges.batch_norm import BatchNorm
from crossdistill.bridges.layout import as_map, split_prefix
from crossdistill.bridges.token_layers import Block, PatchMerging, Projection
from crossdistill.contracts import ModelSpec, StageSpec

TARGET_SIDE = 7
"""Tokens are merged until their grid is about 7 x 7: it keeps the branch's attention small."""


def exit_branch(student: ModelSpec, teacher: ModelSpec, number: int, *, num_classes: int) -> nn.Module:
    """The branch of one stage, initialised; it maps the stage's raw tensor to logits ``(B, num_classes)``.

    A channel-first map gets convolutions, everything else transformer blocks, whatever the student's family.

    Args:
        student: whose stage it is.
        teacher: the wider of both embeddings is the width of a map's branch.
        number: which stage, counted from 1.
        num_classes: size of the classifier.
    """
    stage = student.stages[number - 1]
    num_later_stages = len(student.stages) - number
    branch: nn.Module
    if stage.layout == "NCHW":
        width = max(student.embedding_dim, teacher.embedding_dim)
        branch = MapBranch(stage, num_later_stages, width=width, num_classes=num_classes)
    else:
        branch = TokenBranch(stage, num_later_stages, width=student.embedding_dim, num_classes=num_classes)
    return branch.apply(initialise)


class MapBranch(nn.Module):
    """Halve the map once per later stage while its width doubles, then pool and classify.

    The last stage has nothing left to halve and gets a 1x1 convolution instead. Maps of 1x1 stay 1x1.
    """

    def __init__(self, stage: StageSpec, num_later_stages: int, *, width: int, num_classes: int) -> None:
        super().__init__()
        self.stage = stage
        if num_later_stages == 0:
            self.projector: nn.Module = nn.Conv2d(stage.channels, width, kernel_size=1)
        else:
            widths = [stage.channels * 2**step for step in range(num_later_stages)] + [width]
            self.projector = nn.Sequential(*(SepConv(*pair) for pair in itertools.pairwise(widths)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits ``(B, K)`` from the stage ``(B, C, H, W)``."""
        pooled: Tensor = self.pool(self.projector(as_map(feature, self.stage))).flatten(1)
        return self.classifier(pooled)  # type: ignore[no-any-return]


class SepConv(nn.Sequential):
    """Two depthwise-separable convolutions ``(B, in, H, W) -> (B, out, ceil(H / 2), ceil(W / 2))``."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            *_separable(in_channels, in_channels, stride=2), *_separable(in_channels, out_channels, stride=1)
        )


def _separable(in_channels: int, out_channels: int, *, stride: int) -> Iterator[nn.Module]:
    yield nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False)
    yield nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    yield BatchNorm(out_channels)
    yield nn.ReLU(inplace=True)


class TokenBranch(nn.Module):
    """Merge the grid to about 7x7 tokens of the student's width, run transformer blocks, read out and classify.

    Prefix tokens are set aside while the grid is merged and put back in front for the blocks. The first of them is
    read out: the class token, or a register where the network has registers only. Without any, the mean is.
    """

    def __init__(self, stage: StageSpec, num_later_stages: int, *, width: int, num_classes: int) -> None:
        super().__init__()
        self.stage = stage
        self.merge = _merging(stage, width)
        needs_projection = stage.num_prefix_tokens > 0 and stage.channels != width
        self.prefix_projection = Projection(stage.channels, width) if needs_projection else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(max(num_later_stages, 1))))
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits ``(B, K)`` from the stage ``(B, P + H * W, C)`` or ``(B, H, W, C)``."""
        prefix, patches = split_prefix(feature, self.stage)
        # A channel-last map may come at another resolution than the spec's; tokens cannot say so.
        grid = (feature.shape[1], feature.shape[2]) if self.stage.layout == "NHWC" else self.stage.grid
        tokens: Tensor = self.merge(patches.reshape(len(patches), *grid, self.stage.channels)).flatten(1, 2)
        if self.stage.num_prefix_tokens == 0:
            return self.classifier(self.blocks(tokens).mean(dim=1))  # type: ignore[no-any-return]
        tokens = self.blocks(torch.cat([self.prefix_projection(prefix), tokens], dim=1))
        return self.classifier(tokens[:, 0])  # type: ignore[no-any-return]


def num_merges(grid: tuple[int, int]) -> int:
    """How often a grid is halved to come near 7x7.

    >>> [num_merges((side, side)) for side in (56, 28, 14, 7, 1)]
    [3, 2, 1, 0, 0]
    """
    side = math.isqrt(math.prod(grid))
    return max(math.floor(math.log2(side / TARGET_SIDE)), 0)


def _merging(stage: StageSpec, width: int) -> nn.Sequential:
    """Merges of the grid ``(B, H, W, C) -> (B, h, w, width)``, each but the last of several followed by GELU."""
    count = num_merges(stage.grid)
    if count == 0:
        # Not in the published code, where the only unmerged stage has the student's width already. At other image
        # sizes an earlier stage can be this small.
        return nn.Sequential() if stage.channels == width else nn.Sequential(Projection(stage.channels, width))
    layers: list[nn.Module] = []
    for step in range(count):
        layers.append(PatchMerging(stage.channels if step == 0 else width, width))
        if step < count - 1 or count == 1:  # as released: a single merge keeps its activation
            layers.append(nn.GELU())
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """Weights as released: Kaiming for convolutions, truncated normal with deviation 0.02 for linear layers.

    Norms and the bias of the 1x1 convolution keep torch's own initialisation.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
