"""RKD, Park et al., CVPR 2019: the student's embeddings lie to each other as the teacher's do."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from crossdistill import losses
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.losses.inputs import check_weights
from crossdistill.registry import METHODS


@METHODS.register(
    "rkd",
    title="Relational knowledge distillation",
    paper="Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068",
    summary="Distances between samples, and angles among three of them, are those of the teacher's embeddings.",
    pick_when="embeddings are used for retrieval, or widths differ and nothing shall be trained in between",
)
class RKD(Method):
    """Two losses on the embeddings of the whole batch, without labels and without parameters."""

    needs = frozenset({"embedding"})
    relates_samples = True

    def __init__(self, *, distance_weight: float, angle_weight: float, squared: bool) -> None:
        super().__init__()
        self.distance_weight, self.angle_weight, self.squared = distance_weight, angle_weight, squared

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        squared: bool = False,
    ) -> Self:
        """Make it for one pair; the defaults are those of OFA's comparison, and of the paper's ratio.

        Args:
            student_spec: not used; any width will do.
            teacher_spec: not used.
            num_classes: not used; the heads may differ.
            modules: not used.
            distance_weight: weight of the distances; 0 leaves them out.
            angle_weight: weight of the angles; 0 leaves them out, and with them the cost that grows with B³.
            squared: compare squared distances.

        Raises:
            InputError: a negative weight.
        """
        check_weights({"distance_weight": distance_weight, "angle_weight": angle_weight})
        return cls(distance_weight=distance_weight, angle_weight=angle_weight, squared=squared)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"rkd_distance": loss, "rkd_angle": loss}``, without one whose weight is 0."""
        mine, theirs = student.require("embedding"), teacher.require("embedding")
        terms = {}
        if self.distance_weight:
            terms["rkd_distance"] = self.distance_weight * losses.rkd_distance(mine, theirs, squared=self.squared)
        if self.angle_weight:
            terms["rkd_angle"] = self.angle_weight * losses.rkd_angle(mine, theirs)
        return terms
