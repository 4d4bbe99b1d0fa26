"""No distillation: the student alone, on hard labels."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs, Signal
from crossdistill.registry import METHODS


@METHODS.register(
    "none",
    title="No distillation",
    paper="",
    summary="The student alone: cross-entropy to the labels, no teacher.",
    pick_when="to train a teacher, or the baseline that a distilled student must beat",
)
class NoDistillation(Method):
    """Adds nothing to the cross-entropy, and asks for no teacher."""

    needs: frozenset[Signal] = frozenset()

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec | None = None,
        *,
        num_classes: int,
        modules: Modules | None = None,
    ) -> Self:
        """Make it; there are no options."""
        return cls()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> dict[str, Tensor]:
        """No losses."""
        return {}
