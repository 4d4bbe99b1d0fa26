"""DIST, Huang et al., NeurIPS 2022: match correlations between classes and between samples."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from crossdistill import losses
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.losses.inputs import check_positive, check_same_classes, check_weights
from crossdistill.registry import METHODS


@METHODS.register(
    "dist",
    title="Distillation from a stronger teacher",
    paper="Huang, You, Wang, Qian, Xu, NeurIPS 2022, arXiv 2205.10536",
    summary="Pearson correlation of the probabilities, per sample and per class over the batch.",
    pick_when="the teacher is much stronger than the student, whose probabilities cannot match it exactly",
)
class DIST(Method):
    """One loss on the logits of the whole batch; it needs no labels."""

    relates_samples = True

    def __init__(self, *, beta: float, gamma: float, temperature: float, weight: float) -> None:
        super().__init__()
        self.beta, self.gamma, self.temperature, self.weight = beta, gamma, temperature, weight

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 1.0,
        weight: float = 1.0,
    ) -> Self:
        """Make it for one pair.

        The defaults are those of OFA's comparison (mixed families). The DIST paper uses temperature 4 and
        beta = gamma = 2 on CIFAR-100.

        Args:
            student_spec: the student's facts.
            teacher_spec: the teacher's facts.
            num_classes: classes of the data.
            modules: not used.
            beta: weight of the inter-class part (within each sample).
            gamma: weight of the intra-class part (within each class, over the batch).
            temperature: divides both logits.
            weight: factor of both parts, which already hold temperature².

        Raises:
            InputError: heads that do not fit each other, temperature not above 0, a negative weight.
        """
        check_same_classes(student_spec, teacher_spec, num_classes=num_classes)
        check_positive({"temperature": temperature})
        check_weights({"beta": beta, "gamma": gamma, "weight": weight})
        return cls(beta=beta, gamma=gamma, temperature=temperature, weight=weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"dist": loss}``."""
        loss = losses.dist(
            student.require("logits"),
            teacher.require("logits"),
            beta=self.beta,
            gamma=self.gamma,
            temperature=self.temperature,
        )
        return {"dist": self.weight * loss}
