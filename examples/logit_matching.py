"""Logit matching: the student regresses the teacher's logits."""

from typing import Self

from torch import Tensor
from torch.nn import functional as F

from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.registry import METHODS


@METHODS.register(
    "logit_matching",
    title="Logit matching",
    paper="Ba, Caruana 2014, arXiv 1312.6184",
    summary="Mean squared error between both networks' logits.",
    pick_when="a simple baseline beside kd",
)
class LogitMatching(Method):
    """Asks the teacher for logits (the default of ``needs``) and has nothing to learn of its own."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        weight: float = 0.1,  # an option: on the command line method.weight=0.1
    ) -> Self:
        """Make it for one pair of networks."""
        return cls(weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Named losses, already weighted."""
        return {"logit_matching": self.weight * F.mse_loss(student.require("logits"), teacher.require("logits"))}
