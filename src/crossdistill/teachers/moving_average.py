"""A teacher that is the moving average of its own student, as self-supervised methods have it."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from typing import Literal, Self

import torch
from torch import Tensor, nn

from crossdistill.contracts import Batch, Moment, Outputs, Signal
from crossdistill.errors import InputError
from crossdistill.teachers.frozen import FrozenTeacher

Schedule = Literal["cosine", "constant"]


class MovingAverageTeacher(FrozenTeacher):
    """A copy of the student whose weights follow it; with its state, checkpoints go on exactly.

    Its batch normalisation uses the statistics of each batch, as the student's does, and keeps running statistics of
    its own: they are not averaged. This is the one teacher that is not wholly in eval mode; dropout and stochastic
    depth stay off.

    Args:
        student: where it starts.
        momentum: alpha of the first step; :func:`momentum_at` says how it goes on.
        schedule: whether it rises to 1 over the run, or stays.
        view: which of a batch's images it sees.
    """

    holds: frozenset[Signal] = frozenset({"logits", "embedding", "stages"})

    def __init__(
        self, student: nn.Module, *, momentum: float = 0.99, schedule: Schedule = "cosine", view: str = "teacher0"
    ) -> None:
        self.momentum, self.schedule = momentum, schedule
        super().__init__(copy.deepcopy(student), view=view)

    def train(self, mode: bool = True) -> Self:
        """Batch normalisation in training mode and all else in eval mode, whatever is asked."""
        nn.Module.train(self, False)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = True
        return self

    def answer(self, batch: Batch, signals: Collection[Signal]) -> Outputs:
        """The logits and these signals, of the student as it was on average."""
        images = batch.images[self.view]
        try:
            with torch.no_grad():
                outputs: Outputs = self.model(images)
        except ValueError as error:
            if len(images) > 1:
                raise
            raise InputError(
                f"a batch of one image for a teacher with batch normalisation ({error})",
                "two images or more at a time: one value has no spread to normalise by",
                "raise train.batch_size, which several processes share, or student.image_size",
            ) from error
        return outputs.only({"logits", *signals})

    @torch.no_grad()
    def follow(self, student: nn.Module, moment: Moment) -> None:
        """``teacher <- alpha teacher + (1 - alpha) student`` of all parameters; buffers stay the teacher's own."""
        alpha = momentum_at(moment, start=self.momentum, schedule=self.schedule)
        own: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(own, theirs, 1 - alpha)

    def fingerprint(self) -> str:
        """What names it: its weights change, and a checkpoint holds them."""
        return f"moving average of the student, {self.schedule} from {self.momentum:g}"


def momentum_at(moment: Moment, *, start: float, schedule: Schedule) -> float:
    """alpha of a step: ``1 - (1 - start) (1 + cos(pi step / total)) / 2``, or ``start`` throughout.

    >>> [round(momentum_at(Moment(step, 100), start=0.99, schedule="cosine"), 6) for step in (0, 25, 50, 90)]
    [0.99, 0.991464, 0.995, 0.999755]

    Source: Gidaris et al. 2021, arXiv 2012.11552, section 3.4.
    """
    if schedule == "constant":
        return start
    return 1 - (1 - start) * (1 + math.cos(math.pi * moment.step / moment.total_steps)) / 2
