"""What is trained, and on what: student and method as one module, and the loader that gives their batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from accelerate import Accelerator
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from crossdistill.contracts import Batch, Method, Outputs
from crossdistill.engine.distribute import gather_samples
from crossdistill.engine.optimize import undecayed
from crossdistill.errors import InputError
from crossdistill.losses import cross_entropy
from crossdistill.settings import TrainSettings

HARD_LABELS = "cross_entropy"
"""The name of the loss that the engine adds itself, unless the method holds one already."""


class TrainLoader(Protocol):
    """Training data: a pure function of the epoch; one step is the list of this process's micro-batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        ...

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[list[Batch]]:
        """The steps of one epoch, from ``start_step`` on."""
        ...


class Learner(nn.Module):
    """Student and method as one module, so that one wrapper sees every trained parameter.

    Args:
        student: ``images -> Outputs``.
        method: what compares student and teacher.
        settings: weight and label smoothing of the hard-label term.
        gather: give the method the outputs of all processes.
    """

    def __init__(self, student: nn.Module, method: Method, settings: TrainSettings, *, gather: bool) -> None:
        super().__init__()
        self.student, self.method, self.gather = student, method, gather
        self.hard_label_weight = 0.0 if method.includes_cross_entropy else settings.cross_entropy_weight
        self.label_smoothing = settings.label_smoothing

    def forward(self, batch: Batch, teacher: Outputs) -> dict[str, Tensor]:
        """Named, weighted losses of one micro-batch; they add up to what is minimised."""
        student: Outputs = self.student(batch.images["student"])
        losses = {}
        if self.hard_label_weight:
            loss = cross_entropy(student.require("logits"), batch.target, label_smoothing=self.label_smoothing)
            losses[HARD_LABELS] = self.hard_label_weight * loss
        if self.gather:
            student, teacher, batch = gather_samples(student, teacher, batch)
        losses |= self.method(student, teacher, batch)
        if not losses:
            raise InputError(
                f"method {type(self.method).__name__} with cross_entropy_weight=0, which leaves no loss",
                "at least one loss",
                "set train.cross_entropy_weight above 0, or choose a method",
            )
        return losses

    def no_weight_decay(self) -> set[str]:
        """The student's own list, under the names that it has in here (timm asks for it by this name)."""
        return {f"student.{name}" for name in undecayed(self.student)}


def build_learner(student: nn.Module, method: Method, settings: TrainSettings, accelerator: Accelerator) -> Learner:
    """The learner in training mode on its device; on several GPUs batch statistics are taken over all of them."""
    several = accelerator.num_processes > 1
    learner = Learner(student, method, settings, gather=several and method.relates_samples)
    if several and accelerator.device.type == "cuda":
        convert_sync_batchnorm(learner)  # type: ignore[no-untyped-call]
    return learner.to(accelerator.device).train()
