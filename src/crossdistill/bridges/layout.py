"""View the raw tensor of any stage as a map or as tokens, by the facts of its ``StageSpec``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crossdistill.contracts import StageSpec
from crossdistill.errors import InputError

CHANNEL_AXIS = {"NCHW": 1, "NHWC": 3, "NLC": 2}


def as_map(feature: Tensor, stage: StageSpec) -> Tensor:
    """The stage as a map ``(B, C, H, W)``; prefix tokens, which have no place on the grid, are left out.

    >>> import torch
    >>> stage = StageSpec(channels=8, stride=16, layout="NLC", num_prefix_tokens=1, grid=(3, 4))
    >>> as_map(torch.zeros(2, 13, 8), stage).shape
    torch.Size([2, 8, 3, 4])

    Args:
        feature: ``(B, C, H, W)``, ``(B, H, W, C)`` or ``(B, P + H * W, C)``, as the stage's layout says.
        stage: layout, channels, grid and number P of prefix tokens.

    Raises:
        InputError: a tensor that is not of that layout.
    """
    check_layout(feature, stage)
    if stage.layout == "NCHW":
        return feature
    if stage.layout == "NHWC":
        return feature.permute(0, 3, 1, 2)
    return tokens_to_map(_row_by_row(feature, stage)[:, stage.num_prefix_tokens :], stage.grid)


def as_tokens(feature: Tensor, stage: StageSpec, *, keep_prefix: bool) -> Tensor:
    """The stage as tokens ``(B, L, C)``, row by row of the grid, with or without its prefix tokens in front.

    >>> import torch
    >>> stage = StageSpec(channels=8, stride=16, layout="NLC", num_prefix_tokens=1, grid=(3, 4))
    >>> as_tokens(torch.zeros(2, 13, 8), stage, keep_prefix=False).shape
    torch.Size([2, 12, 8])

    Args:
        feature: ``(B, C, H, W)``, ``(B, H, W, C)`` or ``(B, P + H * W, C)``, as the stage's layout says.
        stage: layout, channels, grid and number P of prefix tokens.
        keep_prefix: whether the P prefix tokens stay.

    Raises:
        InputError: a tensor that is not of that layout.
    """
    check_layout(feature, stage)
    if stage.layout == "NCHW":
        return map_to_tokens(feature)
    if stage.layout == "NHWC":
        return feature.flatten(1, 2)
    feature = _row_by_row(feature, stage)
    return feature if keep_prefix else feature[:, stage.num_prefix_tokens :]


def split_prefix(feature: Tensor, stage: StageSpec) -> tuple[Tensor, Tensor]:
    """Prefix tokens ``(B, P, C)``, P being 0 for maps, and the other tokens ``(B, H * W, C)``."""
    tokens = as_tokens(feature, stage, keep_prefix=True)
    return tokens[:, : stage.num_prefix_tokens], tokens[:, stage.num_prefix_tokens :]


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens ``(B, H * W, C)`` as a map ``(B, C, H, W)``."""
    num_samples, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(num_samples, channels, *grid)


def map_to_tokens(feature: Tensor) -> Tensor:
    """A map ``(B, C, H, W)`` as tokens ``(B, H * W, C)``."""
    return feature.flatten(2).transpose(1, 2)


def from_map(feature: Tensor, stage: StageSpec, prefix: Tensor | None = None) -> Tensor:
    """A map ``(B, C, H, W)`` as the stage's raw tensor, contiguous in memory: the inverse of :func:`as_map`.

    >>> import torch
    >>> stage = StageSpec(channels=8, stride=16, layout="NLC", num_prefix_tokens=1, grid=(3, 4))
    >>> from_map(torch.zeros(2, 8, 3, 4), stage, torch.zeros(2, 1, 8)).shape
    torch.Size([2, 13, 8])

    Args:
        feature: ``(B, C, H, W)``.
        stage: layout, channels, grid and number P of prefix tokens.
        prefix: ``(B, P, C)``, the tokens in front of the patches; None where P is 0.

    Raises:
        InputError: a map or prefix tokens that do not fit the stage.
    """
    if stage.layout == "NHWC":
        raw = feature.movedim(1, -1)
    elif stage.layout == "NCHW":
        raw = feature
    else:
        patches = _dealt_out(map_to_tokens(feature), stage)
        raw = patches if prefix is None else torch.cat([prefix, patches], dim=1)
    check_layout(raw, stage)
    return raw.contiguous()


def _row_by_row(feature: Tensor, stage: StageSpec) -> Tensor:
    """Tokens ``(B, P + H * W, C)`` with the patches in the order of the grid.

    Dealing them out once puts the four offsets within 2x2 neighbours in front of (row, column) of the neighbourhood;
    dealing again does the same within each heap. So a row's number is its heap's, then the offsets, the last one first.
    """
    times = stage.num_unrolls
    if times == 0:
        return feature
    prefix, patches = feature[:, : stage.num_prefix_tokens], feature[:, stage.num_prefix_tokens :]
    dealt = patches.reshape(len(patches), *(2,) * (2 * times), *_heap(stage), stage.channels)
    ordered = dealt.permute(_grid_order(times)).reshape(patches.shape)
    return torch.cat([prefix, ordered], dim=1)


def _dealt_out(patches: Tensor, stage: StageSpec) -> Tensor:
    """Patches ``(B, H * W, C)`` in the order of the grid as the stage keeps them: the inverse of the above."""
    times = stage.num_unrolls
    if times == 0:
        return patches
    heap, offsets, order = _heap(stage), (2,) * times, _grid_order(times)
    ordered = patches.reshape(len(patches), heap[0], *offsets, heap[1], *offsets, stage.channels)
    return ordered.permute([order.index(axis) for axis in range(len(order))]).reshape(patches.shape)


def _heap(stage: StageSpec) -> tuple[int, int]:
    return stage.grid[0] // 2**stage.num_unrolls, stage.grid[1] // 2**stage.num_unrolls


def _grid_order(times: int) -> list[int]:
    """Of the axes (sample, offsets of each deal, heap's row, heap's column, channel), those that make up a row, …"""
    rows = [2 * times + 1, *range(2 * times - 1, 0, -2)]
    return [0, *rows, *(axis + 1 for axis in rows), 2 * times + 3]


def check_layout(feature: Tensor, stage: StageSpec) -> None:
    """Refuse a tensor that is not of the stage's layout; maps may have another grid than the stage, tokens not.

    Raises:
        InputError: another number of axes, channels or tokens.
    """
    num_tokens = stage.num_prefix_tokens + math.prod(stage.grid)
    fits = (
        feature.ndim == len(stage.layout)
        and feature.shape[CHANNEL_AXIS[stage.layout]] == stage.channels
        and (stage.layout != "NLC" or feature.shape[1] == num_tokens)
    )
    if not fits:
        tokens = f", {stage.num_prefix_tokens} prefix tokens" if stage.num_prefix_tokens else ""
        raise InputError(
            f"a stage of shape {tuple(feature.shape)}",
            f"{stage.layout} with {stage.channels} channels on a {stage.grid[0]}x{stage.grid[1]} grid{tokens}",
            "measure the model's spec with the image size it is used at",
        )
