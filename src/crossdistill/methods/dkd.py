"""Decoupled knowledge distillation, Zhao et al., CVPR 2022: weigh target and non-target knowledge apart."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from crossdistill import losses
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.losses.inputs import check_positive, check_same_classes, check_weights
from crossdistill.registry import METHODS


@METHODS.register(
    "dkd",
    title="Decoupled knowledge distillation",
    paper="Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679",
    summary="KD in two parts, target class and other classes, each with its own weight.",
    pick_when="the teacher is very sure of itself, so that plain KD says little about the other classes",
)
class DKD(Method):
    """One loss on the logits; the target class of an unlabelled sample is the teacher's choice."""

    def __init__(self, *, alpha: float, beta: float, temperature: float, weight: float) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature, self.weight = alpha, beta, temperature, weight

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        alpha: float = 1.0,
        beta: float = 2.0,
        temperature: float = 1.0,
        weight: float = 1.0,
    ) -> Self:
        """Make it for one pair.

        The defaults are those of OFA's comparison (mixed families). The DKD paper tunes beta per teacher: on CIFAR-100
        temperature 4 and beta up to 10 (8 is common), with the loss warmed up over 20 epochs, which is not done here.

        Args:
            student_spec: the student's facts.
            teacher_spec: the teacher's facts.
            num_classes: classes of the data, at least 2.
            modules: not used.
            alpha: weight of the target-class part.
            beta: weight of the non-target part.
            temperature: divides both logits.
            weight: factor of both parts, which already hold temperature².

        Raises:
            InputError: heads that do not fit each other, temperature not above 0, a negative weight.
        """
        check_same_classes(student_spec, teacher_spec, num_classes=num_classes)
        check_positive({"temperature": temperature})
        check_weights({"alpha": alpha, "beta": beta, "weight": weight})
        return cls(alpha=alpha, beta=beta, temperature=temperature, weight=weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"dkd": loss}``."""
        teacher_logits = teacher.require("logits")
        loss = losses.dkd(
            student.require("logits"),
            teacher_logits,
            losses.target_class(batch.target, teacher_logits),
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
        )
        return {"dkd": self.weight * loss}
