"""Relational losses: distances and angles among the embeddings of a batch, and the products of their errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from crossdistill.losses.direction import unit
from crossdistill.losses.inputs import embedding_pair

CHUNK_ELEMENTS = 2**24
"""Elements that a tensor may have where a loss is computed for some anchors at a time: 64 MiB of float32.

One anchor is the least: where ``B * max(B, D)`` is more than this, tensors have so many.
"""

MIN_DISTANCE = 1e-6
"""Closer points count as coinciding: their distance is this, without gradient."""


def rkd_distance(student: Tensor, teacher: Tensor, *, squared: bool = False) -> Tensor:
    """Smooth L1 between the two networks' pairwise distances, each divided by its mean.

    Memory grows with B².

    >>> student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [2.0], [3.0]])
    >>> round(rkd_distance(student, teacher).item(), 4)
    0.0556

    Args:
        student: ``(B, D)``.
        teacher: ``(B, E)``; widths may differ.
        squared: compare squared distances.

    Raises:
        InputError: different numbers of rows.

    Source: Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068, equations 5 to 8. As released: the mean is over ordered
    pairs of different samples, the loss over all B² entries with zeros on the diagonal.
    """
    student, teacher = embedding_pair(student, teacher, same_width=False)
    return F.smooth_l1_loss(_relative_distances(student, squared), _relative_distances(teacher, squared))


def _relative_distances(points: Tensor, squared: bool) -> Tensor:
    """Distances ``(B, B)`` over their mean, 0 on the diagonal."""
    num_points = len(points)
    distances = _distances(points).clamp(min=MIN_DISTANCE)
    if squared:
        distances = distances.square()
    distances = distances * (1 - torch.eye(num_points, dtype=points.dtype, device=points.device))
    num_pairs = num_points * (num_points - 1)
    return distances * max(num_pairs, 1) / distances.sum().clamp(min=MIN_DISTANCE**2)


def _distances(points: Tensor) -> Tensor:
    """Distances ``(B, B)``, of some points at a time to all: on GPUs the backward pass holds all differences."""
    size = _anchors_at_a_time(points)
    rows = [points[start : start + size] for start in range(0, len(points), size)]
    # Not by way of a matrix product: |a|² + |b|² - 2ab loses the distances of near neighbours in float32.
    return torch.cat([torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist") for some in rows])


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the cosines of the angles that all triplets of samples span, in both networks.

    There are B³ of them, so large batches are computed for some anchors at a time, and once more in the backward pass:
    no tensor is larger than ``CHUNK_ELEMENTS``, or than ``B * max(B, D)`` and ``B * max(B, E)`` where one anchor alone
    takes more.

    >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    >>> round(rkd_angle(student, teacher).item(), 4)
    0.037

    Args:
        student: ``(B, D)``.
        teacher: ``(B, E)``; widths may differ.

    Raises:
        InputError: different numbers of rows.

    Source: Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068, equations 9 and 10. As released: the mean is over all B³
    entries, zero where two of the three samples coincide.
    """
    student, teacher = embedding_pair(student, teacher, same_width=False)
    num_points, size = len(student), min(_anchors_at_a_time(student), _anchors_at_a_time(teacher))
    # Autocast would run the matrix product in 16 bits.
    with torch.autocast(student.device.type, enabled=False):
        if size >= num_points:
            total = _angle_errors(student, teacher, 0, num_points)
        else:
            parts = [
                checkpoint(_angle_errors, student, teacher, start, size, use_reentrant=False, preserve_rng_state=False)
                for start in range(0, num_points, size)
            ]
            total = torch.stack(parts).sum()
    return total / num_points**3


def _anchors_at_a_time(points: Tensor) -> int:
    """How many points may be anchors at once, when each has a tensor of ``(B, D)`` and one of ``(B, B)``."""
    return max(1, CHUNK_ELEMENTS // max(1, len(points) * max(points.shape)))


def _angle_errors(student: Tensor, teacher: Tensor, start: int, size: int) -> Tensor:
    """Sum of the errors of the angles at ``size`` anchors from ``start`` on."""
    return F.smooth_l1_loss(_angles(student, start, size), _angles(teacher, start, size), reduction="sum")


def _angles(points: Tensor, start: int, size: int) -> Tensor:
    """Cosines ``(size, B, B)``: at ``[i, j, k]`` the angle at point start + i between points j and k."""
    differences = points[None, :] - points[start : start + size, None]
    directions = unit(differences)
    return directions.matmul(directions.transpose(1, 2))


def correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over neighbouring rows i, i + 1 of ``sum_d |delta_i| |delta_{i+1}|``, where delta is student - teacher.

    A batch of one sample has no neighbours and gives 0.

    >>> correlation(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2))
    tensor(11.)

    Args:
        student: ``(B, D)``, already projected to a common space.
        teacher: ``(B, D)``, likewise.

    Raises:
        InputError: different shapes.

    Source: Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang, ICCV 2019, arXiv 1904.01802, in the form of the released
    benchmarks: a product of absolute errors, not the kernel matrix of the paper.
    """
    student, teacher = embedding_pair(student, teacher, same_width=True)
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)
