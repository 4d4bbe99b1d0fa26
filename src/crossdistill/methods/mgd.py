"""MGD, Yang et al., ECCV 2022: from a masked map of the student, a small block must generate the teacher's map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from crossdistill import losses
from crossdistill.bridges.masked_generation import Masked, MaskedGeneration
from crossdistill.bridges.stage_pairs import StagePair, stage_pairs
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.errors import InputError
from crossdistill.losses.inputs import check_weights
from crossdistill.registry import METHODS


@METHODS.register(
    "mgd",
    title="Masked generative distillation",
    paper="Yang, Li, Shao, Shi, Yuan, Yuan, ECCV 2022, arXiv 2205.01529",
    summary="Parts of the student's last map are masked; two convolutions must generate the teacher's map from it.",
    pick_when="the teacher's last map is worth imitating and plain imitation (FitNet) is too strict",
)
class MGD(Method):
    """One generation block per pair of stages; it is dropped after training."""

    needs = frozenset({"stages"})
    reads_stages = True

    def __init__(self, pairs: Sequence[StagePair], *, mask_ratio: float, masked: Masked, weight: float) -> None:
        super().__init__()
        self.pairs, self.weight = tuple(pairs), weight
        self.generations = nn.ModuleDict(
            {
                str(pair.number): MaskedGeneration(
                    pair.student.channels, pair.teacher.channels, mask_ratio=mask_ratio, masked=masked
                )
                for pair in pairs
            }
        )

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        stages: list[int] | None = None,
        mask_ratio: float = 0.15,
        masked: Masked = "channels",
        weight: float = 7e-5,
    ) -> Self:
        """Make it for one pair of networks; the defaults are those released for ImageNet classification.

        Our choice, for any pair: which stages face each other, maps averaged to a common grid, and prefix tokens left
        out (:mod:`crossdistill.bridges.stage_pairs`).

        Args:
            student_spec: the student's facts.
            teacher_spec: the teacher's facts; its number of classes may differ.
            num_classes: not used.
            modules: not used.
            stages: which stages of the student learn, counted from 1; default the last one.
            mask_ratio: probability with which a channel or a position is masked.
            masked: ``"channels"`` of an image, as released for classification, or ``"positions"``, the pixels that the
                paper speaks of.
            weight: weight of each stage's loss, which sums over channels and positions: the smaller the teacher's map,
                the more weight it wants.

        Raises:
            UnsuitablePair: a network without stages.
            InputError: a stage that does not exist, a ratio outside 0 to 1, another thing to mask, a negative weight.
        """
        check_weights({"weight": weight})
        if not 0 <= mask_ratio < 1:
            raise InputError(f"mask_ratio={mask_ratio}", "mask_ratio from 0 to below 1", "choose another mask_ratio")
        if masked not in ("channels", "positions"):
            raise InputError(f"masked={masked!r}", "'channels' or 'positions'", "choose one of them")
        last = [len(student_spec.stages)] if student_spec.stages else None
        pairs = stage_pairs(student_spec, teacher_spec, last if stages is None else stages)
        return cls(pairs, mask_ratio=mask_ratio, masked=masked, weight=weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"mgd_stage4": loss}``, one for each stage that learns."""
        terms = {}
        for pair in self.pairs:
            student_map, teacher_map = pair.maps_on_one_grid(student, teacher)
            generated = self.generations[str(pair.number)](student_map)
            terms[f"mgd_stage{pair.number}"] = self.weight * losses.generation_error(generated, teacher_map)
        return terms
