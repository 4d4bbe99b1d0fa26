"""How to view a raw tensor of a network: layout, grid, prefix tokens and stride, found from its shape alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from crossdistill.contracts import Layout, StageSpec
from crossdistill.models.dry_run import BATCH_SIZE

Size = tuple[int, int]

MOST_PREFIX_TOKENS = 16
"""Class, distillation and register tokens that are looked for when the network does not state their number."""

LARGEST_STRIDE = 64
"""Fewer tokens than that leaves are not positions but class tokens or something pooled."""


def view(
    shape: Sequence[int], image_size: Size, *, num_prefix_tokens: int = 0, channels_last: bool = False
) -> StageSpec | None:
    """The stage that a tensor of that shape holds, or None where it holds no positions.

    Args:
        shape: ``(B, C, H, W)``, ``(B, H, W, C)`` or ``(B, L, C)``.
        image_size: (height, width) of the images it was computed from.
        num_prefix_tokens: what the network says; tried first.
        channels_last: how to read a four-dimensional shape that could be either.
    """
    if len(shape) == 4:
        layout = _map_layout(shape, image_size, channels_last)
        channels, grid = (shape[1], shape[2:]) if layout == "NCHW" else (shape[3], shape[1:3])
        return StageSpec(channels, _stride(image_size, (grid[0], grid[1])), layout, 0, (grid[0], grid[1]))
    if len(shape) == 3:
        for prefix in (num_prefix_tokens, *range(MOST_PREFIX_TOKENS + 1)):
            found = _token_grid(shape[1] - prefix, image_size)
            if found is not None:
                stride = _stride(image_size, found)
                return StageSpec(shape[2], stride, "NLC", prefix, found) if stride <= LARGEST_STRIDE else None
    return None


def at_size(stage: StageSpec, shape: Sequence[int], image_size: Size) -> StageSpec:
    """The same stage for images of another size, from the tensor's shape at that size."""
    if stage.layout == "NLC":
        for rows, columns in itertools.product(*(_counts(side, stage.stride) for side in image_size)):
            if rows * columns == shape[1] - stage.num_prefix_tokens:
                return replace(stage, grid=(rows, columns))
        found = view(shape, image_size, num_prefix_tokens=stage.num_prefix_tokens)
        return replace(stage, grid=found.grid, num_prefix_tokens=found.num_prefix_tokens) if found else stage
    rows, columns = shape[2:] if stage.layout == "NCHW" else shape[1:3]
    return replace(stage, grid=(rows, columns))


def _counts(side: int, stride: int) -> tuple[int, ...]:
    """How many positions a side can have, whether its border is left out or padded."""
    return tuple(dict.fromkeys((max(side // stride, 1), -(-side // stride))))


def views_of(shapes: Sequence[Sequence[int]], image_size: Size, num_prefix_tokens: int = 0) -> list[StageSpec | None]:
    """The stages that the tensors of one forward pass hold, in its order.

    Each is read in the light of the others: which dimension holds the channels, and that 7x7 to 4x4 doubles the stride.

    Args:
        shapes: as two images give them; a tensor with another first dimension holds windows or pixels of an image.
        image_size: (height, width) of the images.
        num_prefix_tokens: what the network says.
    """
    channels_last = reads_channels_last(shapes, image_size)
    found: list[StageSpec | None] = []
    before: StageSpec | None = None
    for shape in shapes:
        stage = None
        if shape and shape[0] == BATCH_SIZE and not _is_flattened(shape, before):
            stage = _on_grid_of(before, shape, num_prefix_tokens) or view(
                shape, image_size, num_prefix_tokens=num_prefix_tokens, channels_last=channels_last
            )
        if before is not None and stage is not None and stage.grid[0] <= before.grid[0]:
            stage = replace(stage, stride=before.stride * round(before.grid[0] / stage.grid[0]))
        before = stage or before
        found.append(stage)
    return found


def _on_grid_of(before: StageSpec | None, shape: Sequence[int], num_prefix_tokens: int) -> StageSpec | None:
    """Tokens as many as the positions of the map or tokens before, whose grid need not have the images' aspect."""
    if before is None or len(shape) != 3 or before.grid == (1, 1):
        return None
    for prefix in (num_prefix_tokens, before.num_prefix_tokens, 0):
        if shape[1] - prefix == math.prod(before.grid):
            return StageSpec(shape[2], before.stride, "NLC", prefix, before.grid)
    return None


def _is_flattened(shape: Sequence[int], before: StageSpec | None) -> bool:
    """Whether it is the map before with its rows in one: ``(B, C, H * W)``."""
    if before is None or before.channels == math.prod(before.grid):  # then it could be tokens as well
        return False
    return tuple(shape[1:]) == (before.channels, math.prod(before.grid))


def reads_channels_last(shapes: Sequence[Sequence[int]], image_size: Size) -> bool:
    """Whether the unambiguous maps among the shapes keep their channels in the last dimension."""
    votes = [_map_fits(shape, image_size) for shape in shapes if len(shape) == 4]
    return sum(last and not first for first, last in votes) > sum(first and not last for first, last in votes)


def _map_fits(shape: Sequence[int], image_size: Size) -> tuple[bool, bool]:
    """Whether dimensions 2, 3 and dimensions 1, 2 can be (height, width)."""

    def fits(height: int, width: int) -> bool:
        # one row more or less is padding; more is another aspect ratio
        return height <= image_size[0] and abs(height * image_size[1] - width * image_size[0]) < max(image_size)

    return fits(shape[2], shape[3]), fits(shape[1], shape[2])


def _map_layout(shape: Sequence[int], image_size: Size, channels_last: bool) -> Layout:
    first, last = _map_fits(shape, image_size)
    if first == last:
        return "NHWC" if channels_last else "NCHW"
    return "NCHW" if first else "NHWC"


def _token_grid(num_tokens: int, image_size: Size) -> Size | None:
    """(height, width) with the images' aspect ratio and exactly so many positions."""
    if num_tokens < 1:
        return None
    height = round(math.sqrt(num_tokens * image_size[0] / image_size[1]))
    if height < 1 or num_tokens % height:
        return None
    width = num_tokens // height
    return (height, width) if height * image_size[1] == width * image_size[0] else None


def _stride(image_size: Size, grid: Size) -> int:
    """Image rows per position; where borders were padded or cut, the nearest power of two.

    Patches that are no power of two leave a border out, which both sides of an oblong image tell.
    """
    if image_size[0] % grid[0] == 0:
        return image_size[0] // grid[0]
    patch = round(image_size[0] / grid[0])
    if grid == (image_size[0] // patch, image_size[1] // patch) and image_size[0] != image_size[1]:
        return patch
    return int(2 ** round(math.log2(max(image_size[0] / grid[0], 1.0))))
