"""Which of the places where a network can be cut become its stages."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from crossdistill.contracts import StageSpec

Kind = Literal["block", "primitive", "norm", "pool", "pass"]
"""What produced a tensor: a module of modules, a single operation, a normalisation, a pooling, or nothing at all."""

HIERARCHICAL_STRIDES = (4, 8, 16)
ISOTROPIC_TWELFTHS = (2, 4, 10, 12)
MOST_STAGES = 4
ENOUGH_STAGES = 3
"""So many stages need no look further into the network."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place where one tensor carries everything that the rest of the network needs.

    Args:
        key: how the cutter finds the place again.
        shape: of the tensor, as the dry run measured it.
        depth: number of containers that go on across the place; 0 is a boundary of the outermost modules.
        kind: what produced the tensor.
        view: how to read the tensor; None where it holds no positions.
        module: name of the module whose output it is; None for the result of a function.
    """

    key: str
    shape: tuple[int, ...]
    depth: int
    kind: Kind
    view: StageSpec | None
    module: str | None = None


def kind_of(module: nn.Module) -> Kind:
    """What a module does to a tensor, from its class."""
    name = type(module).__name__
    if isinstance(module, (nn.Identity, nn.Dropout)) or name == "DropPath":
        return "pass"
    if "Pool" in name and next(module.parameters(), None) is None:
        return "pool"
    if "Norm" in name and not _holds_convolution(module):
        return "norm"
    return "block" if next(module.children(), None) is not None else "primitive"


def _holds_convolution(module: nn.Module) -> bool:
    return any(isinstance(part, (nn.Conv2d, nn.Linear)) for part in module.modules())


def choose(points: Sequence[Point]) -> list[Point]:
    """The ends of the stages, in order, among the cuts of a network (also in order).

    Isotropic networks of N blocks: the blocks number ceil(N * {2, 4, 10, 12} / 12), made distinct from the last one
    backwards. Others: the last cut at strides 4, 8 and 16 (where they lack one of these: the deepest strides they
    have), then the tensor that enters the final norm, pooling or head. Those with fewer than two strides before the
    last one get further ends, each in the middle of the longest row of blocks without one.
    """
    trunk = _trunk(points)
    if not trunk:
        return []
    blocks = _isotropic_blocks(trunk)
    if blocks:
        return [blocks[end - 1] for end in isotropic_ends(len(blocks))]
    final = _strides(trunk)[-1]
    ends = [_last_at(trunk, stride) for stride in _wanted(_strides(trunk), final)] + [trunk[-1]]
    return ends if len(ends) >= ENOUGH_STAGES else _filled(trunk, ends)


def _filled(trunk: Sequence[Point], ends: Sequence[Point]) -> list[Point]:
    """Further ends after blocks; what follows the last block before an end belongs to that block."""
    blocks = [index for index, point in enumerate(trunk) if point.kind == "block"]
    chosen = sorted(trunk.index(end) for end in ends)
    taken = {bisect_right(blocks, end) - 1 for end in chosen} | {-1}
    while len(taken) <= MOST_STAGES:
        before, after = max(pairwise(sorted(taken)), key=lambda pair: (pair[1] - pair[0], pair[0]), default=(0, 0))
        if after - before < 2:
            break
        taken.add((before + after) // 2)
        chosen.append(blocks[(before + after) // 2])
    return [trunk[index] for index in sorted(chosen)[-MOST_STAGES:]]


def isotropic_ends(num_blocks: int) -> list[int]:
    """Block numbers, from 1, at which the stages of an isotropic network end.

    >>> isotropic_ends(12), isotropic_ends(6), isotropic_ends(2)
    ([2, 4, 10, 12], [1, 2, 5, 6], [1, 2])
    """
    ends: list[int] = []
    highest = num_blocks
    for twelfths in reversed(ISOTROPIC_TWELFTHS):
        end = min(math.ceil(num_blocks * twelfths / 12), highest)
        if end < 1:
            break
        ends.insert(0, end)
        highest = end - 1
    return ends


def _trunk(points: Sequence[Point]) -> list[Point]:
    """The cuts that carry positions, up to the one that enters the final norm, pooling or head."""
    trunk: list[Point] = []
    for point in points:
        pooled = point.kind == "pool" and point.view is not None and point.view.grid == (1, 1)
        if trunk and (len(point.shape) < 3 or pooled or _collapses(trunk[-1].view, point.view)):
            break
        if point.view is not None:
            trunk.append(point)
    while len(trunk) > 1 and (trunk[-1].kind == "pass" or _is_final_norm(trunk)):
        trunk.pop()
    return trunk


def _collapses(before: StageSpec | None, after: StageSpec | None) -> bool:
    """A convolution over the whole map, or class tokens on their own, are part of the classifier.

    Networks go on by halves once they are coarse.
    """
    if before is None or after is None:
        return False
    alone = after.grid == (1, 1) and min(before.grid) >= 4
    return alone or (before.stride >= 8 and after.stride >= 4 * before.stride)


def _is_final_norm(trunk: Sequence[Point]) -> bool:
    """A norm after a block closes the network; after a bare convolution it belongs to that convolution."""
    return trunk[-1].kind == "norm" and trunk[-2].kind != "primitive"


def _isotropic_blocks(trunk: Sequence[Point]) -> list[Point]:
    """All blocks of a network whose blocks keep one grid and width from the first to the last; otherwise none.

    Class tokens may join on the way.
    """
    blocks = [after for before, after in pairwise(trunk) if after.kind == "block" and after.shape == before.shape]
    if len(blocks) < 2:
        return []
    same_size = all(_size(point) == _size(blocks[0]) for point in trunk[trunk.index(blocks[0]) :])
    others = sum(point.kind == "block" for point in trunk) - len(blocks)
    return blocks if same_size and len(blocks) >= others else []


def _size(point: Point) -> tuple[Any, ...] | None:
    return (point.view.grid, point.view.channels) if point.view is not None else None


def _strides(trunk: Sequence[Point]) -> list[int]:
    return [point.view.stride for point in trunk if point.view is not None]


def _wanted(strides: Sequence[int], final: int) -> list[int]:
    finer = sorted({stride for stride in strides if stride < final})
    usual = [stride for stride in HIERARCHICAL_STRIDES if stride in finer]
    return usual if len(usual) == len(HIERARCHICAL_STRIDES) else finer[-(MOST_STAGES - 1) :]


def _last_at(trunk: Sequence[Point], stride: int) -> Point:
    """The last cut at a stride, or the one that enters the module that does nothing but leave the stride.

    A transition of norm, convolution and pooling belongs to the next stage, so its input is the stage's end.
    """
    strides = _strides(trunk)
    last = max(index for index, found in enumerate(strides) if found == stride)
    end = last
    for index in range(last - 1, -1, -1):
        if strides[index] != stride or trunk[index + 1].kind == "block":
            break
        if _leaves(trunk, strides, index):
            end = index
    return trunk[end]


def _leaves(trunk: Sequence[Point], strides: Sequence[int], index: int) -> bool:
    """Whether the container entered at ``index`` is left again exactly one stride later."""
    inside = trunk[index].depth
    finer_or_same = strides[index]
    after = next((i for i in range(index + 1, len(trunk)) if trunk[i].depth <= inside), len(trunk) - 1)
    later = sorted({stride for stride in strides[index:] if stride > finer_or_same})
    return bool(later) and strides[after] == later[0]
