"""FitNet, Romero et al., ICLR 2015: project the student's stages and make them equal the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn

from crossdistill import losses
from crossdistill.bridges.stage_pairs import StagePair, stage_pairs
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.losses.inputs import check_weights
from crossdistill.registry import METHODS


@METHODS.register(
    "fitnet",
    title="Hint-based training",
    paper="Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv 1412.6550",
    summary="A 1x1 convolution per stage projects the student's map onto the teacher's; mean squared error.",
    pick_when="both networks are of one family and of similar depth; across families it can do harm",
)
class FitNet(Method):
    """One projection per pair of stages; it is dropped after training."""

    needs = frozenset({"stages"})
    reads_stages = True

    def __init__(self, pairs: Sequence[StagePair], *, weight: float) -> None:
        super().__init__()
        self.pairs, self.weight = tuple(pairs), weight
        self.projections = nn.ModuleDict(
            {
                str(pair.number): nn.Conv2d(pair.student.channels, pair.teacher.channels, kernel_size=1, bias=False)
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
        weight: float = 1.0,
    ) -> Self:
        """Make it for one pair of networks.

        The published hint is one middle layer, trained before the rest. Here several stages learn along with the
        labels, as in OFA-KD's comparison. Our choice, for any pair: which stages face each other, maps averaged to a
        common grid, and prefix tokens left out (:mod:`crossdistill.bridges.stage_pairs`).

        Args:
            student_spec: the student's facts.
            teacher_spec: the teacher's facts; its number of classes may differ.
            num_classes: not used.
            modules: not used.
            stages: which stages of the student learn, counted from 1; default all.
            weight: weight of each stage's loss; they are summed. OFA-KD's comparison uses 1.

        Raises:
            UnsuitablePair: a network without stages.
            InputError: a stage that does not exist, a negative weight.
        """
        check_weights({"weight": weight})
        return cls(stage_pairs(student_spec, teacher_spec, stages), weight=weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"fitnet_stage1": loss, ...}``."""
        terms = {}
        for pair in self.pairs:
            student_map, teacher_map = pair.maps_on_one_grid(student, teacher)
            projected = self.projections[str(pair.number)](student_map)
            terms[f"fitnet_stage{pair.number}"] = self.weight * losses.map_error(projected, teacher_map)
        return terms
