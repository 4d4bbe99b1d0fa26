"""CC, Peng et al., ICCV 2019: correlation congruence, in the form that benchmarks run under its name."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from crossdistill import losses
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.losses.inputs import check_positive, check_weights
from crossdistill.registry import METHODS


@METHODS.register(
    "cc",
    title="Correlation congruence",
    paper="Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang, ICCV 2019, arXiv 1904.01802",
    summary="Both embeddings, projected to one width, differ little in neighbouring samples of a batch.",
    pick_when="as the baseline that published tables have; we know no case where it is the best choice",
)
class CC(Method):
    """One loss on two projected embeddings; it needs no labels. The teacher's projection is trained as well."""

    needs = frozenset({"embedding"})
    relates_samples = True

    def __init__(self, student_projection: nn.Linear, teacher_projection: nn.Linear, *, weight: float) -> None:
        super().__init__()
        self.student_projection, self.teacher_projection = student_projection, teacher_projection
        self.weight = weight

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        embedding_dim: int = 128,
        weight: float = 0.02,
    ) -> Self:
        """Make it for one pair; the defaults are the released ones.

        Args:
            student_spec: the student's facts; the width of its embedding.
            teacher_spec: the teacher's facts, likewise.
            num_classes: not used; the heads may differ.
            modules: not used.
            embedding_dim: common width that both embeddings are projected to.
            weight: factor of the loss.

        Raises:
            InputError: embedding_dim below 1, a negative weight.
        """
        check_positive({"embedding_dim": embedding_dim})
        check_weights({"weight": weight})
        student, teacher = (nn.Linear(spec.embedding_dim, embedding_dim) for spec in (student_spec, teacher_spec))
        return cls(student, teacher, weight=weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"cc": loss}``."""
        mine = self.student_projection(student.require("embedding"))
        theirs = self.teacher_projection(teacher.require("embedding"))
        return {"cc": self.weight * losses.correlation(mine, theirs)}
