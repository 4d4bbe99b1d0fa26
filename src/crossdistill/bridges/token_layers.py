"""Layers on tokens that bridges are made of: patch merging, projection, transformer block."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchMerging(nn.Module):
    """Concatenate 2x2 neighbours, normalise and project: ``(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out)``.

    Source: Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo, ICCV 2021, arXiv 2103.14030, section 3.1.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = Projection(4 * in_channels, out_channels)

    def forward(self, grid: Tensor) -> Tensor:
        """The merged grid; an odd side is padded with zeros at its far end, since its last row has no partner."""
        height, width = grid.shape[1:3]
        grid = F.pad(grid, (0, 0, 0, width % 2, 0, height % 2))
        offsets = ((0, 0), (1, 0), (0, 1), (1, 1))
        neighbours = [grid[:, row::2, column::2] for row, column in offsets]
        return self.project(torch.cat(neighbours, dim=-1))  # type: ignore[no-any-return]


class Projection(nn.Sequential):
    """LayerNorm and a linear layer without bias, on the last axis."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.LayerNorm(in_channels), nn.Linear(in_channels, out_channels, bias=False))


class Block(nn.Module):
    """Pre-norm transformer block on tokens ``(B, L, C)``: attention without qkv bias, then an MLP with GELU.

    Args:
        width: C.
        num_heads: heads of attention; fewer where they do not divide the width.
        mlp_ratio: hidden width of the MLP, in widths.

    Source: Dosovitskiy et al., ICLR 2021, arXiv 2010.11929, equations 2 and 3.
    """

    def __init__(self, width: int, *, num_heads: int = 4, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.num_heads = math.gcd(num_heads, width)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, L, C)`` of the same shape."""
        tokens = tokens + self._attend(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]

    def _attend(self, tokens: Tensor) -> Tensor:
        num_samples, num_tokens, _ = tokens.shape
        heads: Tensor = self.qkv(tokens).reshape(num_samples, num_tokens, 3, self.num_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.attention_projection(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
