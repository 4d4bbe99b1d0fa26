"""RSD's decoupler: two layers between the student's embedding and what is compared with the teacher's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.bridges.batch_norm import BatchNorm


class Decoupler(nn.Module):
    """Widen, normalise over the batch, GELU, and map to the teacher's width: ``(B, D) -> (B, E)``.

    The student's own embedding is then free to keep what the teacher's family has no use for.

    Args:
        student_dim: D.
        teacher_dim: E.
        expansion: hidden width in units of D.

    Source: Zhang, Liu, Ran, Ma, ICCV 2025, arXiv 2507.21844; layers and first weights as in the released code.
    """

    def __init__(self, student_dim: int, teacher_dim: int, *, expansion: int) -> None:
        super().__init__()
        self.expand = nn.Linear(student_dim, expansion * student_dim, bias=False)
        self.norm = BatchNorm(expansion * student_dim)
        self.adapt = nn.Linear(expansion * student_dim, teacher_dim, bias=False)
        for layer in (self.expand, self.adapt):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, embedding: Tensor) -> Tensor:
        """The embedding ``(B, D)`` at the teacher's width; one image alone is normalised as in evaluation."""
        return self.adapt(F.gelu(self.norm(self.expand(embedding))))  # type: ignore[no-any-return]
