"""Several teachers that speak with one voice: the weighted mean of their probabilities."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from crossdistill.contracts import Batch, ModelSpec, Outputs, Signal
from crossdistill.errors import InputError
from crossdistill.teachers.frozen import FrozenTeacher


class EnsembleTeacher(nn.Module):
    """The mean of probabilities at temperature 1, given as log-probabilities ``(B, K)`` in ``Outputs.logits``.

    Embeddings and stages of networks of different shapes have no mean: each teacher's own are in ``Outputs.members``.

    Args:
        teachers: at least one, all with the same classes in the same order.
        weights: one positive weight a teacher; only their ratios matter. Default: all equal.

    Attributes:
        holds: what every one of the teachers holds.
        passes_on: which signals of each teacher stay in ``Outputs.members``. The others are dropped before the next
            teacher answers, so that the stages of all of them are never in memory for a method that reads none.

    Raises:
        InputError: class counts or class names that differ, or weights that do not fit.
    """

    def __init__(self, teachers: Sequence[FrozenTeacher], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(teachers) if weights is None else list(weights)
        _check(teachers, weights)
        self.teachers: Sequence[FrozenTeacher] = nn.ModuleList(teachers)  # type: ignore[assignment]
        self.weights = tuple(weight / sum(weights) for weight in weights)
        self.holds: frozenset[Signal] = frozenset.intersection(*(teacher.holds for teacher in teachers))
        self.passes_on: frozenset[Signal] = frozenset({"logits"})
        self.spec: ModelSpec = replace(
            teachers[0].spec,
            name=" + ".join(teacher.spec.name for teacher in teachers),
            num_parameters=sum(teacher.spec.num_parameters for teacher in teachers),
        )

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def signals(self, batch: Batch) -> Outputs:
        """Log of the weighted mean of probabilities, and of each teacher what is passed on."""
        terms, members = [], []
        for teacher, weight in zip(self.teachers, self.weights, strict=True):
            answer = teacher.answer(batch, self.passes_on)
            terms.append(log_probabilities(answer.require("logits")) + math.log(weight))
            members.append(answer.only(self.passes_on))
        return Outputs(logits=torch.logsumexp(torch.stack(terms), dim=0), members=tuple(members))

    def fingerprint(self) -> str:
        """The hash that names these teachers and their weights in the mean."""
        parts = (f"{t.fingerprint()} {w!r}" for t, w in zip(self.teachers, self.weights, strict=True))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over classes in float32 or wider, so that it also holds inside autocast."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)


def _check(teachers: Sequence[FrozenTeacher], weights: Sequence[float]) -> None:
    sound = all(0 < weight < math.inf for weight in weights) and all(weight / sum(weights) > 0 for weight in weights)
    if not teachers or len(teachers) != len(weights) or not sound:
        raise InputError(
            f"an ensemble of {len(teachers)} {'teacher' if len(teachers) == 1 else 'teachers'} "
            f"with weights {list(weights)}",
            "at least one teacher, and for each a positive weight whose share of their sum is above 0",
            "give as many weights as teachers, of similar size",
        )
    first = teachers[0].spec
    for spec in (teacher.spec for teacher in teachers[1:]):
        if spec.num_classes != first.num_classes:
            raise InputError(
                f"an ensemble of {first.name} with {first.num_classes} classes and {spec.name} with {spec.num_classes}",
                "teachers with the same classes",
                "fine-tune both on the same data with `crossdistill train`",
            )
        if first.class_names and spec.class_names and spec.class_names != first.class_names:
            at = next(i for i, (a, b) in enumerate(zip(first.class_names, spec.class_names, strict=True)) if a != b)
            raise InputError(
                f"an ensemble whose class {at} is {first.class_names[at]!r} for {first.name} and "
                f"{spec.class_names[at]!r} for {spec.name}",
                "the same classes in the same order",
                "rebuild one of them with the other's class names",
            )
