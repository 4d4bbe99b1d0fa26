"""RSD, Zhang et al., ICCV 2025: features of student and teacher agree one by one, and are otherwise uncorrelated."""

from __future__ import annotations

from typing import Literal, Self

from torch import Tensor

from crossdistill import losses
from crossdistill.bridges.decoupler import Decoupler
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.errors import InputError
from crossdistill.losses.inputs import check_positive, check_same_classes, check_weights
from crossdistill.registry import METHODS

Compared = Literal["embedding", "logits"]
"""What of the two networks is compared."""


@METHODS.register(
    "rsd",
    title="Redundancy suppression distillation",
    paper="Zhang, Liu, Ran, Ma, ICCV 2025, arXiv 2507.21844",
    summary="The correlation matrix of both networks' embeddings over the batch is driven to the identity.",
    pick_when="families differ and training must stay cheap: one small bridge; give it batches of 64 or more",
)
class RSD(Method):
    """One loss on the embeddings of the whole batch; it needs no labels.

    The student's embedding goes through a decoupler, the teacher's is taken as it is. ``compare="logits"`` compares the
    logits themselves.
    """

    needs = frozenset({"embedding"})
    relates_samples = True

    def __init__(self, decoupler: Decoupler | None, *, kappa: float, weight: float) -> None:
        super().__init__()
        self.decoupler = decoupler
        self.compared: Compared = "logits" if decoupler is None else "embedding"
        self.needs = frozenset({self.compared})
        self.kappa, self.weight = kappa, weight

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        kappa: float = 0.01,
        weight: float = 0.1,
        expansion: int = 2,
        compare: Compared = "embedding",
    ) -> Self:
        """Make it for one pair; the defaults are those of the released code, which is for CIFAR-100.

        Args:
            student_spec: the student's facts; its embedding's width D is the decoupler's input.
            teacher_spec: the teacher's facts.
            num_classes: classes of the data; only logits are checked against them.
            modules: not used.
            kappa: weight of the correlations off the diagonal.
            weight: factor of the loss, a sum over the entries of the matrix. The paper says that results depend on
                kappa and on this.
            expansion: hidden width of the decoupler in units of D. The overhead that the paper states for an ImageNet
                pair, 0.29 of the student's parameters, is near that of 4; which width it used is not public.
            compare: what is compared. That the paper's variant on logits has no decoupler, and the same kappa and
                weight, is our choice: it says neither.

        Raises:
            InputError: a negative weight or kappa, expansion below 1, anything else to compare; on logits, heads that
                do not fit each other.
        """
        check_weights({"kappa": kappa, "weight": weight})
        check_positive({"expansion": expansion})
        if compare not in ("embedding", "logits"):
            raise InputError(f"compare={compare!r}", "'embedding' or 'logits'", "choose one of them")
        if compare == "logits":
            check_same_classes(student_spec, teacher_spec, num_classes=num_classes)
            return cls(None, kappa=kappa, weight=weight)
        decoupler = Decoupler(student_spec.embedding_dim, teacher_spec.embedding_dim, expansion=expansion)
        return cls(decoupler, kappa=kappa, weight=weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"rsd": loss}``."""
        features = student.require(self.compared)
        if self.decoupler is not None:
            features = self.decoupler(features)
        return {"rsd": self.weight * losses.rsd(features, teacher.require(self.compared), kappa=self.kappa)}
