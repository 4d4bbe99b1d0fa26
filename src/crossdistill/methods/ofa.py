"""OFA-KD, Hao et al., NeurIPS 2023: an exit branch on every student stage, all matched to the teacher's logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

from torch import Tensor, nn

from crossdistill import losses
from crossdistill.bridges.exit_branch import exit_branch
from crossdistill.bridges.stage_pairs import stage_numbers
from crossdistill.contracts import Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.errors import InputError
from crossdistill.losses.inputs import check_positive, check_same_classes, check_weights
from crossdistill.losses.ofa import Form, check_gamma, ofa_of_each
from crossdistill.registry import METHODS


@METHODS.register(
    "ofa",
    title="One-for-all distillation (OFA-KD)",
    paper="Hao, Guo, Han, Tang, Hu, Wang, Xu, NeurIPS 2023, arXiv 2310.19444",
    summary="Exit branches carry every student stage into logit space, where the teacher's logits teach them.",
    pick_when="teacher and student are of different families (CNN, transformer, MLP) and training time allows",
)
class OFA(Method):
    """The same loss on the student's head and on each branch; a branch is dropped after training.

    An unlabelled sample's target class is the teacher's choice. With ``form="paper"`` the loss holds the hard-label
    cross-entropy: the engine then adds none (so ``train.cross_entropy_weight`` and ``label_smoothing`` have no effect),
    and the branches, which get only distillation in the released code, learn from hard labels as well. With
    ``kd_weight=0`` that loss does not reach the head, and the engine adds its own all the same.
    """

    reads_stages = True

    def __init__(
        self,
        branches: Mapping[int, nn.Module],
        gammas: Sequence[float],
        *,
        temperature: float,
        form: Form,
        kd_weight: float,
        branch_weight: float,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({str(number): branch for number, branch in branches.items()})
        self.gammas = tuple(gammas)
        self.temperature, self.form = temperature, form
        self.kd_weight, self.branch_weight = kd_weight, branch_weight
        self.includes_cross_entropy = form == "paper" and kd_weight > 0

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        gamma: float | list[float] = 1.0,
        temperature: float = 1.0,
        form: Form = "code",
        stages: list[int] | None = None,
        kd_weight: float = 1.0,
        branch_weight: float = 1.0,
    ) -> Self:
        """Make it for one pair; the defaults are the released ones.

        Args:
            student_spec: the student's facts; its stages decide the branches.
            teacher_spec: the teacher's facts; only logits are asked of it.
            num_classes: classes of the data.
            modules: not used.
            gamma: exponent of the target boost; one for all, or one per branch and, last, one for the head. Published:
                1.0 on CIFAR-100, 1.5 on ImageNet, best mostly between 1.1 and 1.4; lower it if training is unstable.
            temperature: divides all logits.
            form: ``"code"`` as released, ``"paper"`` as published (see the class).
            stages: which stages get a branch, counted from 1; default all, none with ``[]``.
            kd_weight: weight of the head's loss.
            branch_weight: weight of each branch's loss; they are summed. The author used 0.1 for CNN students on
                CIFAR-100.

        Raises:
            InputError: heads that do not fit each other, a stage that does not exist, a wrong number of gammas,
                gamma or temperature not above 0, a negative weight.
        """
        check_same_classes(student_spec, teacher_spec, num_classes=num_classes)
        check_positive({"temperature": temperature})
        check_weights({"kd_weight": kd_weight, "branch_weight": branch_weight})
        numbers = stage_numbers(stages, student_spec)
        gammas = _gammas(gamma, num_branches=len(numbers))
        branches = {
            number: exit_branch(student_spec, teacher_spec, number, num_classes=num_classes) for number in numbers
        }
        return cls(
            branches, gammas, temperature=temperature, form=form, kd_weight=kd_weight, branch_weight=branch_weight
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"ofa_head": loss, "ofa_branch1": loss, ...}``."""
        stages, teacher_logits = student.require_stages(), teacher.require("logits")
        labels = losses.target_class(batch.target, teacher_logits)
        # One branch after the other, not with stacked weights as one batch: both are measured in benchmarks/parts.py.
        logits = [branch(stages[int(number) - 1]) for number, branch in self.branches.items()]
        *of_branches, of_head = ofa_of_each(
            [*logits, student.require("logits")],
            teacher_logits,
            labels,
            gammas=self.gammas,
            temperature=self.temperature,
            form=self.form,
        )
        terms = {"ofa_head": self.kd_weight * of_head}
        for number, loss in zip(self.branches, of_branches, strict=True):
            terms[f"ofa_branch{number}"] = self.branch_weight * loss
        return terms


def _gammas(gamma: float | Sequence[float], *, num_branches: int) -> list[float]:
    gammas = list(gamma) if isinstance(gamma, Sequence) else [gamma] * (num_branches + 1)
    if len(gammas) != num_branches + 1:
        of_each = "the branch" if num_branches == 1 else f"each of {num_branches} branches"
        raise InputError(
            f"gamma={gammas}, {len(gammas)} of them",
            f"one number, or {num_branches + 1}: one for {of_each}, then one for the head",
            "give one number for all, or that many",
        )
    for value in gammas:
        check_gamma(value)
    return gammas
