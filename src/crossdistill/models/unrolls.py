"""Tokens that do not lie row by row of their grid: Hiera deals them out first, and each pooling takes one deal back."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from crossdistill.contracts import StageSpec


def in_its_order(net: nn.Module, stage: StageSpec) -> StageSpec:
    """The stage with the number of times that its tokens are still dealt out, from what the network says of itself.

    Source: Ryali et al., ICML 2023, arXiv 2306.00989, in timm's module ``Unroll``.
    """
    unroll = getattr(net, "unroll", None)
    schedule, grid = getattr(unroll, "schedule", None), getattr(unroll, "size", None)
    if stage.layout != "NLC" or not schedule or not grid or any(tuple(one) != (2, 2) for one in schedule):
        return stage
    num_poolings = round(math.log2(grid[0] / stage.grid[0]))
    return replace(stage, num_unrolls=max(len(schedule) - num_poolings, 0))
