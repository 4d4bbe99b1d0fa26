"""RSD: the cross-correlation of two networks' features over the batch is driven to the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crossdistill.losses.inputs import check_weights, embedding_pair

EPSILON = 1e-5
"""Added to each feature's deviation over the batch, as released; a constant feature correlates with nothing."""


def rsd(student: Tensor, teacher: Tensor, *, kappa: float) -> Tensor:
    """``sum_i (P_ii - 1)² + kappa * sum_{i != j} P_ij²`` of the correlations P between the features of both.

    ``P_ij`` is Pearson's correlation, over the batch, of the teacher's feature i with the student's feature j. The
    diagonal asks for the same answer to an image, the rest for features that say different things. Memory grows with
    D², whatever the batch. In a batch of one nothing varies: P is 0, and so is the gradient.

    >>> student = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    >>> round(rsd(student, 3 * student, kappa=0.01).item(), 4), round(rsd(student, -student, kappa=0.01).item(), 4)
    (0.0, 7.9997)

    Args:
        student: ``(B, D)``, already projected to the teacher's width.
        teacher: ``(B, D)``.
        kappa: weight of the entries off the diagonal.

    Raises:
        InputError: different shapes, a negative kappa.

    Source: Zhang, Liu, Ran, Ma, ICCV 2025, arXiv 2507.21844, in the form of the released code: summed over the
    entries, not averaged.
    """
    check_weights({"kappa": kappa})
    student, teacher = embedding_pair(student, teacher, same_width=True)
    # Autocast would run the matrix product in 16 bits.
    with torch.autocast(student.device.type, enabled=False):
        correlation = _standardized(teacher).T.matmul(_standardized(student)) / len(student)
    diagonal = torch.eye(len(correlation), dtype=torch.bool, device=correlation.device)
    off_diagonal = correlation.masked_fill(diagonal, 0.0)
    return (correlation.diagonal() - 1).square().sum() + kappa * off_diagonal.square().sum()


def _standardized(features: Tensor) -> Tensor:
    """Each column of ``(B, D)`` with mean 0 and, but for the small constant, deviation 1."""
    centred = features - features.mean(dim=0)
    deviation: Tensor = torch.linalg.vector_norm(centred, dim=0) / math.sqrt(len(features))
    return centred / (deviation + EPSILON)
