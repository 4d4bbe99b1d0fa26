"""Cross-entropy to hard, soft and missing labels, and the one class that a loss needs where there is none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.contracts import UNLABELLED
from crossdistill.errors import InputError
from crossdistill.losses.inputs import Reduction, reduce, widen


def cross_entropy(
    logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy that skips unlabelled samples; with none labelled, a zero that can still be differentiated.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> round(cross_entropy(logits, torch.tensor([0, -1])).item(), 4)
    0.1269

    Args:
        logits: ``(B, K)``.
        target: ``(B,)`` int64 with -1 for unlabelled, or class probabilities ``(B, K)``.
        label_smoothing: share of the target that is spread evenly over the classes.
        reduction: ``"mean"`` over the labelled samples, or ``"none"`` for ``(B,)`` with zeros for the others.

    Raises:
        InputError: a target of another shape.
    """
    logits = widen(logits)
    _check_target(target, logits)
    if target.ndim == 2:
        per_sample = F.cross_entropy(logits, target.to(logits.dtype), reduction="none", label_smoothing=label_smoothing)
        return reduce(per_sample, reduction)
    per_sample = F.cross_entropy(
        logits, target.long(), ignore_index=UNLABELLED, reduction="none", label_smoothing=label_smoothing
    )
    if reduction == "mean":
        return per_sample.sum() / (target != UNLABELLED).sum().clamp(min=1)
    return reduce(per_sample, reduction)


def target_class(target: Tensor, teacher_logits: Tensor) -> Tensor:
    """One class per sample, ``(B,)``: its label, the likeliest of a soft label, or where unlabelled the teacher's.

    >>> teacher_logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    >>> target_class(torch.tensor([0, -1]), teacher_logits)
    tensor([0, 1])

    Args:
        target: ``(B,)`` int64 with -1 for unlabelled, or class probabilities ``(B, K)``.
        teacher_logits: ``(B, K)``.

    Raises:
        InputError: a target of another shape.
    """
    _check_target(target, teacher_logits)
    if target.ndim == 2:
        return target.argmax(dim=1)
    return torch.where(target == UNLABELLED, teacher_logits.argmax(dim=1), target.long())


def _check_target(target: Tensor, logits: Tensor) -> None:
    hard = target.shape == logits.shape[:1] and not target.is_floating_point()
    soft = target.shape == logits.shape and target.is_floating_point()
    if logits.ndim != 2 or not (hard or soft):
        raise InputError(
            f"target {tuple(target.shape)} of {target.dtype} for logits {tuple(logits.shape)}",
            "one class per sample (B,) int64, or class probabilities (B, K) as floats, for logits (B, K)",
            "check the collate function or the head's number of classes",
        )
