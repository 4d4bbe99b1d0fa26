"""Knowledge distillation: the student's softened probabilities match the teacher's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from crossdistill.losses.inputs import Reduction, check_positive, logit_pair, reduce, widen


def kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, reduction: Reduction = "mean") -> Tensor:
    """KL divergence of the teacher's softened probabilities from the student's, times the squared temperature.

    >>> import torch
    >>> student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[2.0, 0.0, -2.0]])
    >>> round(kd(student, teacher, temperature=4.0).item(), 4)
    0.3057

    Args:
        student_logits: ``(B, K)``.
        teacher_logits: ``(B, K)``.
        temperature: divides both logits; the factor temperature² keeps gradients at one scale.
        reduction: ``"mean"`` over the batch, or ``"none"`` for ``(B,)``.

    Raises:
        InputError: logits of different shapes, temperature not above 0.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.
    """
    check_positive({"temperature": temperature})
    student, teacher = logit_pair(student_logits, teacher_logits)
    return temperature**2 * reduce(kl_divergence(student / temperature, teacher / temperature), reduction)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """``KL(softmax(teacher) || softmax(student))`` of each sample, ``(B,)``, from logits ``(B, K)``."""
    student, teacher = student_logits.log_softmax(dim=1), teacher_logits.log_softmax(dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1)


def standardize(logits: Tensor) -> Tensor:
    """Each sample's logits ``(B, K)`` with mean 0 and standard deviation 1 over its classes.

    Student and teacher then need not agree on the range of their logits, only on their order and relative distances.
    The deviation divides by K, as in the paper; the released code divides by K - 1, which is the same as a
    temperature larger by sqrt(K / (K - 1)).

    >>> import torch
    >>> standardize(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[-1.2247,  0.0000,  1.2247]])

    Source: Sun, Ren, Li, Wang, Cao, CVPR 2024, arXiv 2403.01427, algorithm 1.
    """
    logits = widen(logits)
    # The small constant only matters for logits that are all equal: a head initialised to zero gives such.
    return F.layer_norm(logits, logits.shape[-1:], eps=1e-7)
