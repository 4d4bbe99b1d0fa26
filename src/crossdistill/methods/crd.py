"""CRD, Tian, Krishnan, Isola, ICLR 2020: tell an image's other embedding from those of images of other classes."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from crossdistill import losses
from crossdistill.bridges.contrast_memory import ContrastMemory
from crossdistill.contracts import UNLABELLED, Batch, Method, ModelSpec, Modules, Outputs
from crossdistill.losses.cross_entropy import is_labelled
from crossdistill.losses.direction import unit
from crossdistill.losses.inputs import check_positive, check_weights
from crossdistill.losses.noise_contrastive import log_mean_exp
from crossdistill.registry import METHODS


@METHODS.register(
    "crd",
    title="Contrastive representation distillation",
    paper="Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699",
    summary="Each network's embedding of an image is told from thousands of the other's, of other classes.",
    pick_when="classes are many and training long; published gains across families are mixed, so compare with kd",
)
class CRD(Method):
    """Noise-contrastive estimation in both directions, with negatives from a memory of earlier batches.

    Both embeddings go through a trained linear layer each and are scaled to length 1. An anchor of the student is
    compared with rows of the teacher, and the other way round; what it is compared with gets no gradient.

    Our choices, where the released code keeps an averaged row per sample of the data set and draws negatives for each
    image by its index: the latest rows of either network in order of arrival, the batch's own among them, without
    averaging; the same rows for all anchors, each leaving out its own class and sample, with K counted for each; and
    the positive is the batch's own row. An unlabelled image leaves out only itself. The release starts from random
    rows; with a positive that is no random row, two networks that give every image the same answer tell these apart
    best, so here a row counts once it has been written.
    """

    needs = frozenset({"embedding"})
    relates_samples = True

    log_means: Tensor
    are_fixed: Tensor

    def __init__(
        self,
        student_projection: nn.Linear,
        teacher_projection: nn.Linear,
        memory: ContrastMemory,
        *,
        temperature: float,
        weight: float,
    ) -> None:
        super().__init__()
        self.student_projection, self.teacher_projection = student_projection, teacher_projection
        self.memory, self.temperature, self.weight = memory, temperature, weight
        # One a direction; the first batch that has negatives fixes them.
        self.register_buffer("log_means", torch.zeros(2))
        self.register_buffer("are_fixed", torch.zeros((), dtype=torch.int64))

    @classmethod
    def build(
        cls,
        student_spec: ModelSpec,
        teacher_spec: ModelSpec,
        *,
        num_classes: int,
        modules: Modules | None = None,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        embedding_dim: int = 128,
        weight: float = 1.0,
    ) -> Self:
        """Make it for one pair; the defaults are those of OFA's comparison.

        Args:
            student_spec: the student's facts; the width of its embedding.
            teacher_spec: the teacher's facts, likewise.
            num_classes: not used; the heads may differ.
            modules: not used.
            num_negatives: rows in the memory of each network; a step computes this many scores for each image.
            temperature: divides the cosines.
            embedding_dim: common width that both embeddings are projected to.
            weight: factor of both directions; 0.8 in CRD's own scripts, 1 in OFA's comparison.

        Raises:
            InputError: num_negatives or embedding_dim below 1, temperature not above 0, a negative weight.
        """
        check_positive({"num_negatives": num_negatives, "temperature": temperature, "embedding_dim": embedding_dim})
        check_weights({"weight": weight})
        student, teacher = (nn.Linear(spec.embedding_dim, embedding_dim) for spec in (student_spec, teacher_spec))
        memory = ContrastMemory(num_negatives, embedding_dim)
        return cls(student, teacher, memory, temperature=temperature, weight=weight)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """``{"crd_student": loss, "crd_teacher": loss}``, named for the anchor; in training the batch is remembered."""
        mine = unit(self.student_projection(student.require("embedding")))
        theirs = unit(self.teacher_projection(teacher.require("embedding")))
        labels = _labels(batch.target, student.require("logits"))
        if self.training:
            self.memory.write(mine.detach(), theirs.detach(), labels, batch.sample_id)
        allowed = self.memory.negatives_of(labels, batch.sample_id)
        scores = [self._scores(mine, theirs, self.memory.teacher), self._scores(theirs, mine, self.memory.student)]
        terms = {}
        for side, pair, log_mean in zip(("student", "teacher"), scores, self._log_means(scores, allowed), strict=True):
            terms[f"crd_{side}"] = self.weight * losses.noise_contrastive(*pair, allowed, log_mean=log_mean)
        return terms

    def _scores(self, anchors: Tensor, partners: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines over the temperature: with the own partner ``(B,)``, and with all rows of the memory ``(B, N)``."""
        positive = (anchors * partners.detach()).sum(dim=1) / self.temperature
        # Autocast would compute in 16 bits. A copy, since the next step may write before this one's backward pass.
        with torch.autocast(anchors.device.type, enabled=False):
            return positive, anchors.matmul(others.to(anchors.dtype, copy=True).T) / self.temperature

    @torch.no_grad()
    def _log_means(self, scores: list[tuple[Tensor, Tensor]], allowed: Tensor) -> Tensor:
        """Logarithm of each direction's normaliser ``(2,)``: the batch's own until one is fixed."""
        fresh = torch.stack([log_mean_exp(positive, negatives, allowed) for positive, negatives in scores])
        log_means = torch.where(self.are_fixed > 0, self.log_means.to(fresh.dtype), fresh)
        if self.training:
            usable = log_means.isfinite().all() & allowed.any()
            self.log_means.copy_(torch.where(usable, log_means, self.log_means))
            self.are_fixed.logical_or_(usable)
        return log_means


def _labels(target: Tensor, logits: Tensor) -> Tensor:
    """One class a sample, ``(B,)``: the label, the likeliest of a mixture, or -1."""
    return torch.where(is_labelled(target), losses.target_class(target, logits), UNLABELLED)
