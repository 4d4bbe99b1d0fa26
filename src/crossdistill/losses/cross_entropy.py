"""Cross-entropy to hard, soft and missing labels, and the one class that a loss needs where there is none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from crossdistill.contracts import UNLABELLED
from crossdistill.errors import InputError
from crossdistill.losses.inputs import Reduction, reduce, widen


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy that skips unlabelled samples; with none labelled, a zero that can still be differentiated.

    Of a labelled sample it is ``-sum_c w_c p_c log q_c``, where q is the softmax of the logits, p the target with its
    smoothed share spread evenly, and w the class weights (1 without any). The mean divides by the number of labelled
    samples. It does not divide by their summed weights, as PyTorch does: so the mean over a batch stays the weighted
    mean of those over its parts, on however many processes these are.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    >>> round(cross_entropy(logits, torch.tensor([0, -1])).item(), 4)
    0.1269

    Args:
        logits: ``(B, K)``.
        target: ``(B,)`` int64 with -1 for unlabelled, or class probabilities ``(B, K)`` with zeros for unlabelled.
        label_smoothing: share of the target that is spread evenly over the classes.
        class_weights: ``(K,)``, one positive weight a class.
        reduction: ``"mean"`` over the labelled samples, or ``"none"`` for ``(B,)`` with zeros for the others.

    Raises:
        InputError: a target of another shape, or another number of weights.
    """
    logits = widen(logits)
    _check_target(target, logits)
    weight = _weights(class_weights, logits)
    if target.ndim == 2:
        soft = F.cross_entropy(
            logits, target.to(logits.dtype), weight, reduction="none", label_smoothing=label_smoothing
        )
        per_sample = torch.where(is_labelled(target), soft, 0)  # smoothing would spread over an empty row as well
    else:
        per_sample = F.cross_entropy(
            logits, target.long(), weight, ignore_index=UNLABELLED, reduction="none", label_smoothing=label_smoothing
        )
    if reduction == "mean":
        return per_sample.sum() / is_labelled(target).sum().clamp(min=1)
    return reduce(per_sample, reduction)


def is_labelled(target: Tensor) -> Tensor:
    """Which samples have a label, ``(B,)`` bool: a class other than -1, or class probabilities that are not all zero.

    >>> is_labelled(torch.tensor([3, -1])), is_labelled(torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    (tensor([ True, False]), tensor([ True, False]))
    """
    return target.sum(dim=1) > 0 if target.ndim == 2 else target != UNLABELLED


def target_class(target: Tensor, teacher_logits: Tensor) -> Tensor:
    """One class per sample, ``(B,)``: its label, the likeliest of a soft label, or where unlabelled the teacher's.

    >>> teacher_logits = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    >>> target_class(torch.tensor([0, -1]), teacher_logits)
    tensor([0, 1])

    Args:
        target: ``(B,)`` int64 with -1 for unlabelled, or class probabilities ``(B, K)`` with zeros for unlabelled.
        teacher_logits: ``(B, K)``.

    Raises:
        InputError: a target of another shape.
    """
    _check_target(target, teacher_logits)
    label = target.argmax(dim=1) if target.ndim == 2 else target.long()
    return torch.where(is_labelled(target), label, teacher_logits.argmax(dim=1))


def _weights(class_weights: Tensor | None, logits: Tensor) -> Tensor | None:
    if class_weights is None:
        return None
    if class_weights.shape != logits.shape[1:]:
        raise InputError(
            f"class weights {tuple(class_weights.shape)} for logits {tuple(logits.shape)}",
            f"one weight a class: ({logits.shape[1]},)",
            "give as many weights as the data have classes",
        )
    return class_weights.to(logits)


def _check_target(target: Tensor, logits: Tensor) -> None:
    hard = target.shape == logits.shape[:1] and not target.is_floating_point()
    soft = target.shape == logits.shape and target.is_floating_point()
    if logits.ndim != 2 or not (hard or soft):
        raise InputError(
            f"target {tuple(target.shape)} of {target.dtype} for logits {tuple(logits.shape)}",
            "one class per sample (B,) int64, or class probabilities (B, K) as floats, for logits (B, K)",
            "check the collate function or the head's number of classes",
        )
