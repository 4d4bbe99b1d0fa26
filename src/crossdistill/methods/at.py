"""Attention transfer, Zagoruyko and Komodakis, ICLR 2017: the student looks where the teacher looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from crossdistill import losses
from crossdistill.bridges.stage_pairs import StagePair, common_grid, stage_pairs
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.errors import UnsuitablePair
from crossdistill.losses.inputs import check_weights
from crossdistill.losses.maps import check_power
from crossdistill.registry import METHODS


@METHODS.register(
    "at",
    title="Attention transfer",
    paper="Zagoruyko, Komodakis, ICLR 2017, arXiv 1612.03928",
    summary="Maps of where each stage's activations are large, normalised per image, are made equal.",
    pick_when="stages are to be compared at almost no cost: it adds no parameters and asks for no equal widths",
)
class AttentionTransfer(Method):
    """Activation-based attention transfer; it has no parameters."""

    needs = frozenset({"stages"})
    reads_stages = True

    def __init__(self, pairs: Sequence[StagePair], *, power: float, weight: float) -> None:
        super().__init__()
        self.pairs, self.power, self.weight = tuple(pairs), power, weight

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        stages: list[int] | None = None,
        power: float = 2.0,
        weight: float = 1000.0,
    ) -> Self:
        """Make it for one pair of networks.

        The loss is the mean of squared differences, as in the released code. Our choice, for any pair: which stages
        face each other, prefix tokens left out (:mod:`crossdistill.bridges.stage_pairs`), and attention maps, not
        features, averaged to a common grid, so that activations of opposite sign do not cancel.

        Args:
            student_spec: the student's facts.
            teacher_spec: the teacher's facts; its number of classes may differ.
            num_classes: not used.
            modules: not used.
            stages: which stages of the student learn, counted from 1; default all.
            power: exponent of the activations, from 1 to 16; published: 2.
            weight: weight of each stage's loss; they are summed. The authors use 1000 for this form.

        Raises:
            UnsuitablePair: a network without stages, or one position at every stage.
            InputError: a stage that does not exist, another power, a negative weight.
        """
        check_weights({"weight": weight})
        check_power(power)
        pairs = stage_pairs(student_spec, teacher_spec, stages)
        if all(pair.grid == (1, 1) for pair in pairs):
            raise UnsuitablePair(
                f"student {student_spec.name!r} and teacher {teacher_spec.name!r}, who share a 1x1 grid at every "
                "chosen stage",
                "a stage with several positions in both: the method compares where activations are large",
                "use larger images, or other stages",
            )
        return cls(pairs, power=power, weight=weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"at_stage1": loss, ...}``."""
        terms = {}
        for pair in self.pairs:
            own, other = (losses.attention_map(one, power=self.power) for one in pair.maps(student, teacher))
            own, other = common_grid(own[:, None], other[:, None])
            loss = losses.attention_transfer(own[:, 0], other[:, 0])
            terms[f"at_stage{pair.number}"] = self.weight * loss
        return terms
