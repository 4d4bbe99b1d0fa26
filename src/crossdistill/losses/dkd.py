"""Decoupled knowledge distillation: the target class against the rest, and the rest among themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from crossdistill.errors import InputError
from crossdistill.losses.inputs import Reduction, check_labels, check_positive, logit_pair, reduce
from crossdistill.losses.kd import kl_divergence


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    beta: float,
    temperature: float,
    reduction: Reduction = "mean",
) -> Tensor:
    """``alpha`` x KL on (target, rest) + ``beta`` x KL among the other classes, times the squared temperature.

    With ``beta`` equal to the teacher's probability of the rest, and ``alpha = 1``, this is :func:`kd`.

    >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[2.0, 0.0, -2.0]])
    >>> round(dkd(student, teacher, torch.tensor([0]), alpha=1.0, beta=2.0, temperature=1.0).item(), 4)
    0.2409

    Args:
        student_logits: ``(B, K)`` with K at least 2.
        teacher_logits: ``(B, K)``.
        labels: ``(B,)`` int64, the target classes.
        alpha: weight of the target-class part.
        beta: weight of the non-target part.
        temperature: divides both logits.
        reduction: ``"mean"`` over the batch, or ``"none"`` for ``(B,)``.

    Raises:
        InputError: logits or labels of wrong shape, fewer than two classes, temperature not above 0.

    Source: Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679, equation 7.
    """
    check_positive({"temperature": temperature})
    student, teacher = logit_pair(student_logits, teacher_logits)
    labels = check_labels(labels, student)
    student_split, student_rest = _decouple(student / temperature, labels)
    teacher_split, teacher_rest = _decouple(teacher / temperature, labels)
    target_part = kl_divergence(student_split, teacher_split)
    rest_part = kl_divergence(student_rest, teacher_rest)
    return temperature**2 * reduce(alpha * target_part + beta * rest_part, reduction)


def _decouple(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of (target, all others together) ``(B, 2)``, and of the others alone ``(B, K - 1)``."""
    num_classes = logits.shape[1]
    if num_classes < 2:
        raise InputError(f"logits {tuple(logits.shape)}", "at least two classes", "use `kd` for a single class")
    target = logits.gather(1, labels[:, None])
    columns = torch.arange(num_classes - 1, device=logits.device)
    rest = logits.gather(1, columns + (columns >= labels[:, None]))
    return torch.cat([target, rest.logsumexp(dim=1, keepdim=True)], dim=1), rest
