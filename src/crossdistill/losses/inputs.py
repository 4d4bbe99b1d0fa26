"""What every loss asks of its inputs, and what two networks must share before their logits can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from crossdistill.contracts import ModelSpec
from crossdistill.errors import InputError

Reduction = Literal["mean", "none"]


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that already.

    >>> widen(torch.zeros(2, dtype=torch.bfloat16)).dtype, widen(torch.zeros(2, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def logit_pair(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits ``(B, K)``, widened to one type.

    Raises:
        InputError: they are not two matrices of one shape.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)}",
            "two tensors (B, K): the same samples, the same classes",
            "give both networks the same batch, and the teacher a head for the student's classes",
        )
    return _one_type(student_logits, teacher_logits)


def embedding_pair(student: Tensor, teacher: Tensor, *, same_width: bool) -> tuple[Tensor, Tensor]:
    """Both embeddings ``(B, D)``, widened to one type; widths may differ unless ``same_width``.

    Raises:
        InputError: they are not two matrices with the same number of rows (and columns).
    """
    compared = 2 if same_width else 1
    if student.ndim != 2 or teacher.ndim != 2 or student.shape[:compared] != teacher.shape[:compared]:
        raise InputError(
            f"student embedding {tuple(student.shape)} and teacher embedding {tuple(teacher.shape)}",
            "two tensors (B, D) of one shape" if same_width else "two tensors (B, D) with the same number of rows",
            "project both to one width" if same_width else "give both networks the same batch",
        )
    return _one_type(student, teacher)


def check_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """The labels ``(B,)`` int64; their values are not read, since that would wait for the device.

    Raises:
        InputError: labels of another shape, or that are no integers.
    """
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"labels {tuple(labels.shape)} of {labels.dtype} for logits {tuple(logits.shape)}",
            f"one class per sample: ({logits.shape[0]},) int64",
            "reduce soft or missing labels with `losses.target_class` first",
        )
    return labels.long()


def reduce(per_sample: Tensor, reduction: Reduction) -> Tensor:
    """The mean over the batch, or the values ``(B,)`` as they are."""
    if reduction not in ("mean", "none"):
        raise InputError(f"reduction={reduction!r}", "'mean' or 'none'", "choose one of them")
    return per_sample.mean() if reduction == "mean" else per_sample


def check_positive(values: Mapping[str, float]) -> None:
    """Refuse an option that is not above zero or not finite, by its name.

    Raises:
        InputError: such an option.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name}={value}", f"a finite {name} above 0", f"choose another {name}")


def check_weights(values: Mapping[str, float]) -> None:
    """Refuse a weight of a loss that is below zero or not finite, by its name.

    Raises:
        InputError: such a weight.
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name}={value}", f"a finite {name} of 0 or more", f"choose another {name}")


def check_same_classes(student: ModelSpec, teacher: ModelSpec, *, num_classes: int) -> None:
    """Refuse networks whose heads do not count the classes of the data.

    Raises:
        InputError: a head with another number of classes.
    """
    if student.num_classes == teacher.num_classes == num_classes:
        return
    raise InputError(
        f"student {student.name!r} with {student.num_classes} classes, teacher {teacher.name!r} with "
        f"{teacher.num_classes} classes, data with {num_classes}",
        "one number of classes: logits are compared class by class",
        "train the network that differs on this data first (`crossdistill train`)",
    )


def _one_type(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = widen(student), widen(teacher)
    shared = torch.promote_types(student.dtype, teacher.dtype)
    return student.to(shared), teacher.to(shared)
