"""The OFA loss: distillation whose target class is boosted by an exponent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from crossdistill.errors import InputError
from crossdistill.losses.inputs import Reduction, check_labels, check_positive, logit_pair, reduce

Form = Literal["code", "paper"]
"""``"code"``: as the released code computes it; ``"paper"``: as published, with the hard-label term inside."""

STACKED_ELEMENTS = 2**17
"""On a CPU, logits of all heads together that are still stacked: beyond its cache, copying costs more than the calls
that it saves (measured in ``benchmarks/parts.py``).
"""

STACKED_BYTES = 256 * 2**20
"""The same on other devices, as a bound of what is copied. A guess: where stacking stops to pay there is not measured.
"""

MAX_GAMMA = 16.0
"""The target's boost reaches 2^gamma: 65536 here, and from 128 on no number of float32."""


def ofa(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    temperature: float,
    form: Form = "code",
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of the student to the teacher's probabilities p, with the target class t boosted by ``gamma``.

    The weight of class c in ``- sum_c weight_c log softmax(student / temperature)_c`` is

    * ``form="code"``: ``(1 + p_t)^gamma - 1`` for the target, ``p_c^gamma`` for the others;
    * ``form="paper"``: ``(1 + p_t)^gamma`` for the target, ``p_c`` for the others. The 1 is the hard-label
      cross-entropy, so none must be added.

    The two differ by exactly that cross-entropy at ``gamma = 1``, and in more than that otherwise: above 1 the
    code's form also shrinks the probabilities of the other classes. No factor of temperature².

    >>> student = torch.tensor([[2.0, 0.5, -1.0, 0.0], [0.0, 1.0, 2.0, -2.0]])
    >>> teacher = torch.tensor([[1.0, 1.0, 0.0, -1.0], [0.0, 3.0, 0.5, -0.5]])
    >>> labels = torch.tensor([0, 1])
    >>> round(ofa(student, teacher, labels, gamma=1.5, temperature=1.0).item(), 4)
    1.5692
    >>> round(ofa(student, teacher, labels, gamma=1.5, temperature=1.0, form="paper").item(), 4)
    2.8859

    Args:
        student_logits: ``(B, K)``.
        teacher_logits: ``(B, K)``.
        labels: ``(B,)`` int64, the target classes.
        gamma: exponent of the boost, above 0 and at most 16; 1 is none.
        temperature: divides both logits.
        form: which of the two formulas.
        reduction: ``"mean"`` over the batch, or ``"none"`` for ``(B,)``.

    Raises:
        InputError: logits or labels of wrong shape, another form, gamma outside its range, a temperature not above 0.

    Source: Hao, Guo, Han, Tang, Hu, Wang, Xu, NeurIPS 2023, arXiv 2310.19444, adaptive target enhancement.
    """
    check_gamma(gamma)
    check_positive({"temperature": temperature})
    student, teacher = logit_pair(student_logits, teacher_logits)
    labels = check_labels(labels, student)
    weight = _class_weights(_soften(teacher, temperature).softmax(dim=1), labels, gamma, form)
    return reduce(_cross_entropy(student, weight, temperature), reduction)


def ofa_of_each(
    student_logits: Sequence[Tensor],
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    gammas: Sequence[float],
    temperature: float,
    form: Form = "code",
) -> list[Tensor]:
    """The scalar :func:`ofa` of each of several logits against one teacher, for less than one call each.

    The teacher's probabilities and, for equal gammas, the weights of the classes are computed once; small logits are
    stacked and compared at once as well.

    Args:
        student_logits: N times ``(B, K)``, at least one.
        teacher_logits: ``(B, K)``.
        labels: ``(B,)`` int64, the target classes.
        gammas: N exponents.
        temperature, form: those of :func:`ofa`.

    Raises:
        InputError: as :func:`ofa`; no student logits, or not one gamma for each.
    """
    if not student_logits or len(gammas) != len(student_logits):
        raise InputError(
            f"{len(gammas)} gammas for {len(student_logits)} student logits",
            "one gamma for each of one or more logits",
            "give as many of one as of the other",
        )
    for gamma in gammas:
        check_gamma(gamma)
    check_positive({"temperature": temperature})
    students, teacher = _widened(student_logits, teacher_logits)
    labels = check_labels(labels, teacher)
    probability = _soften(teacher, temperature).softmax(dim=1)
    by_gamma = {gamma: _class_weights(probability, labels, gamma, form) for gamma in dict.fromkeys(gammas)}
    weights = [by_gamma[gamma] for gamma in gammas]
    if not _stacks(students):
        each = zip(students, weights, strict=True)
        return [_cross_entropy(student, weight, temperature).mean() for student, weight in each]
    weight = weights[0] if len(by_gamma) == 1 else torch.stack(weights)
    return list(_cross_entropy(torch.stack(students), weight, temperature).mean(dim=1))


def _widened(students: Sequence[Tensor], teacher: Tensor) -> tuple[list[Tensor], Tensor]:
    """All logits in the widest of their types; where the teacher's have it already they are not copied again."""
    wide = []
    for student in students:
        student, teacher = logit_pair(student, teacher)
        wide.append(student)
    return [student.to(teacher.dtype) for student in wide], teacher


def _stacks(students: Sequence[Tensor]) -> bool:
    """Whether to copy the logits together."""
    elements = sum(map(Tensor.numel, students))
    if students[0].device.type == "cpu":
        return elements <= STACKED_ELEMENTS
    return elements * students[0].element_size() <= STACKED_BYTES


def check_gamma(gamma: float) -> None:
    """Refuse an exponent of the boost that is not above 0, or so large that it only overflows.

    Raises:
        InputError: such a gamma.
    """
    if not 0 < gamma <= MAX_GAMMA:
        raise InputError(f"gamma={gamma}", f"gamma above 0, at most {MAX_GAMMA:g}", "choose another gamma")


def _soften(logits: Tensor, temperature: float) -> Tensor:
    return logits if temperature == 1 else logits / temperature


def _cross_entropy(student: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """``- sum_c weight_c log softmax(student / temperature)_c`` over the last axis, which is the classes."""
    # log_softmax, not the logarithm of a softmax: a gap of 104 would give -inf, and 0 * -inf is NaN.
    return -(weight * _soften(student, temperature).log_softmax(dim=-1)).sum(dim=-1)


def _class_weights(probability: Tensor, labels: Tensor, gamma: float, form: Form) -> Tensor:
    target = torch.zeros_like(probability).scatter(1, labels[:, None], 1.0)
    if form == "code":
        return (probability + target) ** gamma - target
    if form == "paper":
        return torch.where(target > 0, (1 + probability) ** gamma, probability)
    raise InputError(f"form={form!r}", "'code' or 'paper'", "choose one of them")
