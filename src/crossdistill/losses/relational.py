"""Relational losses: distances and angles among the embeddings of a batch, and the products of their errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.losses.inputs import embedding_pair

MIN_DISTANCE = 1e-6
"""Closer points count as coinciding: their distance is this, without gradient, and they have no direction."""


def rkd_distance(student: Tensor, teacher: Tensor, *, squared: bool = False) -> Tensor:
    """Smooth L1 between the two networks' pairwise distances, each divided by its mean.

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
    # Not by way of a matrix product: |a|² + |b|² - 2ab loses the distances of near neighbours in float32.
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=MIN_DISTANCE)
    if squared:
        distances = distances.square()
    distances = distances * (1 - torch.eye(num_points, dtype=points.dtype, device=points.device))
    num_pairs = num_points * (num_points - 1)
    return distances * max(num_pairs, 1) / distances.sum().clamp(min=MIN_DISTANCE**2)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the cosines of the angles that all triplets of samples span, in both networks.

    Memory grows with B³ and B² D.

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
    # Autocast would run the matrix product in 16 bits.
    with torch.autocast(student.device.type, enabled=False):
        return F.smooth_l1_loss(_angles(student), _angles(teacher))


def _angles(points: Tensor) -> Tensor:
    """Cosines ``(B, B, B)``: at ``[i, j, k]`` the angle at point i between points j and k."""
    differences = points[None, :] - points[:, None]
    lengths: Tensor = torch.linalg.vector_norm(differences, dim=2, keepdim=True)
    directions = differences / lengths.clamp(min=MIN_DISTANCE)
    directions = directions.masked_fill(lengths < MIN_DISTANCE, 0.0)
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
