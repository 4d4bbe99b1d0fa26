"""L2G, the bridge from local to global: from one network's stage to what another network's next stage expects.

Source: Li, Wang, Yan, Ding, Gao, Xia, ICCV 2025, arXiv 2410.12342: a patch embedding and one Swin block. Kernel,
norm, heads and windows are our choice.
"""

from __future__ import annotations

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.bridges.layout import as_map, from_map
from crossdistill.contracts import StageSpec
from crossdistill.errors import InputError

HEAD_WIDTH = 32
WINDOWS = range(4, 8)
"""Sides that a window may have on a larger grid; 7 as published for Swin wherever that fits."""


class LevelBridge(nn.Module):
    """Patch embedding, layer norm and one Swin block: the raw tensor of ``source`` to one of ``target``.

    The patch embedding is a convolution whose kernel and stride are the ratio of the two grids where that is whole,
    1x1 on equal grids; otherwise it is 1x1 and its result is resized. The block's windows are those of
    :func:`window_side`, not shifted, and nothing is dropped. Prefix tokens of ``source`` are left out. Each of
    ``target`` is a learnt vector plus the mean of the bridge's tokens, so that a class token knows the image.

    Args:
        source: what the stage gives.
        target: what is expected in its place.
        mlp_ratio: hidden width of the block's MLP, in channels of ``target``.

    Raises:
        InputError: an MLP without a channel.
    """

    def __init__(self, source: StageSpec, target: StageSpec, *, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.source, self.target = source, target
        width, patch = target.channels, patch_size(source.grid, target.grid)
        if int(mlp_ratio * width) < 1:
            raise InputError(
                f"mlp_ratio={mlp_ratio} for {width} channels",
                f"one hidden channel or more: {1 / width:.2g} at least",
                "choose another mlp_ratio; published for Swin: 4",
            )
        windows = window_side(target.grid[0]), window_side(target.grid[1])
        self.patch_embedding = nn.Conv2d(source.channels, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        self.block = SwinTransformerBlock(
            width, target.grid, num_heads=num_heads(width), window_size=windows, shift_size=0, mlp_ratio=mlp_ratio
        )
        has_prefix = target.num_prefix_tokens > 0
        self.prefix = nn.Parameter(torch.empty(target.num_prefix_tokens, width)) if has_prefix else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.prefix is not None:
            nn.init.trunc_normal_(self.prefix, std=0.02)

    def forward(self, feature: Tensor) -> Tensor:
        """The tensor that the target's network can go on from."""
        embedded: Tensor = self.patch_embedding(as_map(feature, self.source))
        if embedded.shape[2:] != self.target.grid:
            embedded = F.interpolate(embedded, size=self.target.grid, mode="bilinear", align_corners=False)
        tokens: Tensor = self.block(self.norm(embedded.movedim(1, -1)))
        prefix = None
        if self.prefix is not None:
            mean = tokens.mean(dim=(1, 2))[:, None]
            prefix = mean + self.prefix.to(mean.dtype)
        return from_map(tokens.movedim(-1, 1), self.target, prefix)


def patch_size(source: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """How many positions (down, across) of one grid make one of the other; 1 x 1 where that is no whole number.

    >>> patch_size((14, 14), (14, 14)), patch_size((28, 28), (14, 14)), patch_size((14, 14), (16, 16))
    ((1, 1), (2, 2), (1, 1))
    """
    if source[0] % target[0] or source[1] % target[1]:
        return 1, 1
    return source[0] // target[0], source[1] // target[1]


def window_side(grid_side: int) -> int:
    """Side of the windows along one side of a grid: all of it up to 7, else the one of 4 to 7 whose last is fullest.

    A window that reaches over the edge is filled with zeros, which attention takes for tokens like any other: windows
    of 7 would leave one position of 8 alone with them. Of several that are equally full, the largest is taken.

    >>> [window_side(side) for side in (1, 7, 8, 9, 12, 14, 16, 28)]
    [1, 7, 4, 5, 6, 7, 4, 7]
    """
    if grid_side <= WINDOWS[-1]:
        return grid_side
    return max(WINDOWS, key=lambda side: (((grid_side - 1) % side + 1) / side, side))


def num_heads(width: int) -> int:
    """Heads of 32 channels, or of a few more where 32 does not divide the width.

    >>> [num_heads(width) for width in (384, 192, 48, 112, 16)]
    [12, 6, 1, 2, 1]
    """
    return next(heads for heads in range(max(width // HEAD_WIDTH, 1), 0, -1) if width % heads == 0)
