"""Knowledge distillation, Hinton, Vinyals, Dean 2015: match the teacher's softened probabilities."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from crossdistill import losses
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.losses.inputs import check_positive, check_same_classes, check_weights
from crossdistill.registry import METHODS


@METHODS.register(
    "kd",
    title="Knowledge distillation",
    paper="Hinton, Vinyals, Dean 2015, arXiv 1503.02531",
    summary="KL divergence to the teacher's softened probabilities.",
    pick_when="first: cheap, works for any pair; standardize=true where the teacher is far larger",
)
class KD(Method):
    """One loss on the logits; unlabelled samples are distilled like all others."""

    def __init__(self, *, temperature: float, weight: float, standardize: bool) -> None:
        super().__init__()
        self.temperature, self.weight, self.standardize = temperature, weight, standardize

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        temperature: float = 4.0,
        weight: float = 1.0,
        standardize: bool = False,
    ) -> Self:
        """Make it for one pair.

        Args:
            student_spec: the student's facts.
            teacher_spec: the teacher's facts.
            num_classes: classes of the data.
            modules: not used.
            temperature: divides both logits. 4 is what the KD literature mostly uses on CIFAR-100; OFA's comparison
                runs KD at 1.
            weight: factor of the loss, which already holds temperature².
            standardize: z-score both logits first (Sun et al., CVPR 2024, arXiv 2403.01427).

        Raises:
            InputError: heads that do not fit each other, temperature not above 0, a negative weight.
        """
        check_same_classes(student_spec, teacher_spec, num_classes=num_classes)
        check_positive({"temperature": temperature})
        check_weights({"weight": weight})
        return cls(temperature=temperature, weight=weight, standardize=standardize)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"kd": loss}``."""
        student_logits, teacher_logits = student.require("logits"), teacher.require("logits")
        if self.standardize:
            student_logits, teacher_logits = losses.standardize(student_logits), losses.standardize(teacher_logits)
        return {"kd": self.weight * losses.kd(student_logits, teacher_logits, temperature=self.temperature)}
