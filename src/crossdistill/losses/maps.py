"""Losses on maps ``(B, C, H, W)``: squared error at one or several scales, and the place of their energy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.errors import InputError
from crossdistill.losses.inputs import widen

MAX_POWER = 16.0
"""At more, whatever is below 0.6 of the largest activation weighs less than 1/3000 of it."""

MIN_SIZE = 1e-30
"""A map without a larger entry counts as one of zeros: it stays zeros, without gradient."""

CONTEXT_SIDES = (4, 2, 1)


def map_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of all entries.

    >>> map_error(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[0.0, 1.0]]]]))
    tensor(2.5000)

    Args:
        student: ``(B, C, H, W)``, already projected to the teacher's channels.
        teacher: ``(B, C, H, W)``.

    Raises:
        InputError: different shapes.

    Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv 1412.6550, equation 3, as a mean.
    """
    student, teacher = map_pair(student, teacher)
    return F.mse_loss(student, teacher)


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two attention maps, each divided by its sample's L2 norm.

    >>> round(attention_transfer(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0]]])).item(), 4)
    0.4

    Args:
        student: ``(B, H, W)``, such as :func:`attention_map` gives; the scale of a sample's map does not matter.
        teacher: ``(B, H, W)``, likewise.

    Raises:
        InputError: different shapes.

    Source: Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928. The published equation 2 sums the norms of the
    differences; this is the mean of their squares, as in the released code and the benchmarks since. Those add an
    epsilon to the norms; here each map is divided by its largest entry first, so that no norm is small.
    """
    student, teacher = map_pair(student, teacher)
    return F.mse_loss(_unit(student), _unit(teacher))


def attention_map(feature: Tensor, *, power: float = 2.0) -> Tensor:
    """Where a map's energy lies: the mean over channels of ``|a / m|^power``, ``(B, H, W)``; m is the sample's max |a|.

    >>> attention_map(torch.tensor([[[[1.0, -2.0]], [[4.0, 0.0]]]]))
    tensor([[[0.5312, 0.1250]]])

    Args:
        feature: ``(B, C, H, W)``; the scale of a sample does not matter, so no power overflows or vanishes as a whole.
        power: from 1 to 16 (see :func:`check_power`).

    Raises:
        InputError: another power.

    Source: Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928, section 3.1. A sum of ``|a|^power`` there: its scale is
    divided away when two maps are compared.
    """
    check_power(power)
    return _relative(widen(feature)).abs().pow(power).mean(dim=1)


def check_power(power: float) -> None:
    """Refuse an exponent for :func:`attention_map` at which it says nothing: the gradient at 0 is infinite below 1.

    Raises:
        InputError: a power outside 1 to 16.
    """
    if not 1 <= power <= MAX_POWER:
        raise InputError(f"power={power}", f"power from 1 to {MAX_POWER:g}", "choose another power; published: 2")


def _unit(attention: Tensor) -> Tensor:
    """Each sample's map as one row ``(B, H W)`` of length 1, or of zeros."""
    relative = _relative(attention).flatten(1)
    length: Tensor = torch.linalg.vector_norm(relative, dim=1, keepdim=True)
    return relative / length.clamp(min=1.0)  # it is 1 at least, but for a map of zeros


def _relative(maps: Tensor) -> Tensor:
    """Each sample ``(...)`` of ``(B, ...)`` in units of its own largest absolute value."""
    largest = maps.abs().flatten(1).amax(dim=1)
    unit = largest.masked_fill(largest < MIN_SIZE, torch.inf)
    return maps / unit.reshape(-1, *[1] * (maps.ndim - 1))


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of the squared errors of two maps, and of both averaged to 4x4, 2x2 and 1x1.

    Each scale has half the weight of the one before. A scale that is not coarser than the map is left out; for maps
    that are not square, each side is reduced only as far as it is larger.

    >>> student = torch.tensor([[[[1.0, -1.0]]]])
    >>> hierarchical_context(student, torch.zeros(1, 1, 1, 2))  # (1 + 1/2 * 0) / (1 + 1/2)
    tensor(0.6667)

    Args:
        student: ``(B, C, H, W)``.
        teacher: ``(B, C, H, W)``.

    Raises:
        InputError: different shapes.

    Source: Chen, Liu, Zhao, Jia, CVPR 2021, arXiv 2104.09044, hierarchical context loss, with the released weights.
    """
    student, teacher = map_pair(student, teacher)
    height, width = student.shape[2:]
    loss, weight, total_weight = F.mse_loss(student, teacher), 1.0, 1.0
    # Averaging is linear, so the error is averaged once instead of both maps.
    error = student - teacher
    for side in CONTEXT_SIDES:
        if side < max(height, width):
            weight /= 2
            total_weight += weight
            loss = loss + weight * average_to(error, (min(side, height), min(side, width))).square().mean()
    return loss / total_weight


def generation_error(generated: Tensor, teacher: Tensor) -> Tensor:
    """Squared error summed over channels and positions, mean over the batch.

    >>> generation_error(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    tensor(48.)

    Args:
        generated: ``(B, C, H, W)``, made from the masked student's map.
        teacher: ``(B, C, H, W)``.

    Raises:
        InputError: different shapes.

    Source: Yang, Li, Shao, Shi, Yuan, Yuan, ECCV 2022, arXiv 2205.01529, with the batch mean of the released code.
    """
    generated, teacher = map_pair(generated, teacher)
    return (generated - teacher).square().sum() / len(generated)


def average_to(feature: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map ``(B, C, H, W)`` averaged over the cells of a coarser grid (height, width); the same tensor on its own."""
    height, width = feature.shape[2:]
    if (height, width) == grid:
        return feature
    if height % grid[0] == 0 and width % grid[1] == 0:  # the same, by a kernel that is deterministic on GPUs as well
        return F.avg_pool2d(feature, (height // grid[0], width // grid[1]))
    return F.adaptive_avg_pool2d(feature, grid)


def map_pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps, widened to one type.

    Raises:
        InputError: they have different shapes.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)}",
            "two maps of one shape",
            "project the channels and average both to one grid first",
        )
    student, teacher = widen(student), widen(teacher)
    shared = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(shared), teacher.to(shared)
