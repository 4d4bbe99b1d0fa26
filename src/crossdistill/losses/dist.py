"""DIST: match the correlations between classes and between samples instead of the probabilities themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from crossdistill.losses.inputs import check_positive, logit_pair

EPSILON = 1e-8
"""Added to the product of norms, as published; a class that no sample predicts has no direction to compare."""


def dist(student_logits: Tensor, teacher_logits: Tensor, *, beta: float, gamma: float, temperature: float) -> Tensor:
    """One minus Pearson's correlation, over the classes of a sample and over the samples of a class.

    >>> student = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> teacher = torch.tensor([[2.0, 0.0, -2.0], [0.0, 2.0, 1.0]])
    >>> round(dist(student, teacher, beta=1.0, gamma=1.0, temperature=1.0).item(), 4)
    0.0231

    Args:
        student_logits: ``(B, K)``.
        teacher_logits: ``(B, K)``.
        beta: weight of the inter-class part (each row over its K classes).
        gamma: weight of the intra-class part (each column over the B samples, so the batch matters).
        temperature: divides both logits; both parts are multiplied by its square.

    Raises:
        InputError: logits of different shapes, temperature not above 0.

    Source: Huang, You, Wang, Qian, Xu, NeurIPS 2022, arXiv 2205.10536, equations 8 to 10.
    """
    check_positive({"temperature": temperature})
    student, teacher = logit_pair(student_logits, teacher_logits)
    student, teacher = (student / temperature).softmax(dim=1), (teacher / temperature).softmax(dim=1)
    inter_class = 1 - row_correlation(student, teacher).mean()
    intra_class = 1 - row_correlation(student.T, teacher.T).mean()
    return temperature**2 * (beta * inter_class + gamma * intra_class)


def row_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation ``(N,)`` of each row of two matrices ``(N, M)``; 0 for a constant row."""
    first = first - first.mean(dim=1, keepdim=True)
    second = second - second.mean(dim=1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    return (first * second).sum(dim=1) / (norms + EPSILON)
