"""ReviewKD's student side: every level takes up what the deeper ones know before it faces the teacher's.

Source: Chen, Liu, Zhao, Jia, CVPR 2021, arXiv 2104.09044, in the layers of the released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.bridges.batch_norm import BatchNorm
from crossdistill.losses.maps import average_to


class Review(nn.Module):
    """Attention-based fusion of a network's levels, from the deepest to the shallowest.

    Args:
        student_channels: of each level, from shallow to deep.
        teacher_channels: of the level that each faces.
        width: channels in which levels are fused.
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, width: int) -> None:
        super().__init__()
        last = len(student_channels) - 1
        self.fusions = nn.ModuleList(
            LevelFusion(own, other, width=width, takes_deeper=level < last)
            for level, (own, other) in enumerate(zip(student_channels, teacher_channels, strict=True))
        )

    def forward(self, levels: Sequence[Tensor], grids: Sequence[tuple[int, int]]) -> list[Tensor]:
        """What faces the teacher, ``(B, teacher channels, height, width)`` per level, from shallow to deep.

        Args:
            levels: the student's maps, from shallow to deep.
            grids: (height, width) of each result, nowhere larger than the student's own.
        """
        results: list[Tensor] = []
        deeper: Tensor | None = None
        for fusion, level, grid in reversed(list(zip(self.fusions, levels, grids, strict=True))):
            result, deeper = fusion(level, deeper, grid)
            results.append(result)
        return results[::-1]


class LevelFusion(nn.Module):
    """One level: project, weigh it against the deeper levels position by position, and project to the teacher's.

    The deepest level has nothing to take up and no attention.
    """

    def __init__(self, student_channels: int, teacher_channels: int, *, width: int, takes_deeper: bool) -> None:
        super().__init__()
        project = nn.Conv2d(student_channels, width, kernel_size=1, bias=False)
        result = nn.Conv2d(width, teacher_channels, kernel_size=3, padding=1, bias=False)
        for convolution in (project, result):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.project = nn.Sequential(project, BatchNorm(width))
        self.attention = nn.Conv2d(2 * width, 2, kernel_size=1) if takes_deeper else None
        self.result = nn.Sequential(result, BatchNorm(teacher_channels))

    def forward(self, level: Tensor, deeper: Tensor | None, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The result on the grid, and the fused map ``(B, width, H, W)`` for the next shallower level."""
        fused: Tensor = self.project(level)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, size=fused.shape[2:], mode="nearest")
            share = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = share[:, :1] * fused + share[:, 1:] * deeper
        return self.result(average_to(fused, grid)), fused
