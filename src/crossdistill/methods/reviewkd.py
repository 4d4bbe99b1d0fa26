"""ReviewKD, Chen et al., CVPR 2021: the teacher's shallow levels teach the student's deep ones as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from crossdistill import losses
from crossdistill.bridges.review import Review
from crossdistill.bridges.stage_pairs import StagePair, smaller_grid, stage_pairs
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.losses.inputs import check_positive, check_weights, widen
from crossdistill.losses.maps import average_to
from crossdistill.registry import METHODS


@METHODS.register(
    "reviewkd",
    title="Knowledge review",
    paper="Chen, Liu, Zhao, Jia, CVPR 2021, arXiv 2104.09044",
    summary="The student's stages are fused from deep to shallow; each fusion is compared at several scales.",
    pick_when="teacher and student are CNNs, and extra convolutions at every stage are affordable in training",
)
class ReviewKD(Method):
    """The review: a level per pair of stages, and the embeddings as the deepest; it is dropped after training."""

    needs = frozenset({"stages", "embedding"})
    reads_stages = True

    def __init__(self, pairs: Sequence[StagePair], review: Review, *, weight: float, warmup_epochs: float) -> None:
        super().__init__()
        self.pairs, self.review = tuple(pairs), review
        self.weight, self.warmup_epochs = weight, warmup_epochs

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        stages: list[int] | None = None,
        max_width: int = 512,
        weight: float = 1.0,
        warmup_epochs: float = 0.0,
    ) -> Self:
        """Make it for one pair of networks.

        Our choice, for any pair: which stages face each other, prefix tokens left out
        (:mod:`crossdistill.bridges.stage_pairs`), results averaged to the common grid where the released code enlarges
        them, and stages as they are, where it takes some networks' before their last activation.

        Args:
            student_spec: the student's facts.
            teacher_spec: the teacher's facts; its number of classes may differ.
            num_classes: not used.
            modules: not used.
            stages: which stages of the student learn beside its embedding, counted from 1; default all.
            max_width: levels are fused in as many channels as the student's embedding has, but at most these.
            weight: weight of each level's loss; they are summed. The released program's default is 1; its scripts take
                0.6 to 8 on CIFAR-100, by pair of networks.
            warmup_epochs: epochs over which the weight rises from 0. Published: 20 of 240 on CIFAR-100. Our choice is
                none, since it depends on the length of training.

        Raises:
            UnsuitablePair: a network without stages.
            InputError: a stage that does not exist, max_width not above 0, a negative weight or warm-up.
        """
        check_weights({"weight": weight, "warmup_epochs": warmup_epochs})
        check_positive({"max_width": max_width})
        pairs = stage_pairs(student_spec, teacher_spec, stages)
        review = Review(
            [*(pair.student.channels for pair in pairs), student_spec.embedding_dim],
            [*(pair.teacher.channels for pair in pairs), teacher_spec.embedding_dim],
            width=min(max_width, student_spec.embedding_dim),
        )
        return cls(pairs, review, weight=weight, warmup_epochs=warmup_epochs)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"reviewkd_stage1": loss, ..., "reviewkd_embedding": loss}``."""
        own, other = self._levels(student, teacher)
        grids = [smaller_grid(one.shape[2:], two.shape[2:]) for one, two in zip(own, other, strict=True)]
        names = [*(f"reviewkd_stage{pair.number}" for pair in self.pairs), "reviewkd_embedding"]
        weight = self.weight * self._warmth(batch.epoch)
        return {
            name: weight * losses.hierarchical_context(result, average_to(target, grid))
            for name, result, target, grid in zip(names, self.review(own, grids), other, grids, strict=True)
        }

    def _levels(self, student: Outputs, teacher: Outputs) -> tuple[list[Tensor], list[Tensor]]:
        """Both networks' maps from shallow to deep; the embeddings are maps of one position."""
        maps = [pair.maps(student, teacher) for pair in self.pairs]
        embeddings = (widen(one.require("embedding"))[:, :, None, None] for one in (student, teacher))
        own, other = zip(*maps, embeddings, strict=True)
        return list(own), list(other)

    def _warmth(self, epoch: int) -> float:
        return min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
