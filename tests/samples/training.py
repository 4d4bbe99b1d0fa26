"""Small real training set-ups: models that return ``Outputs``, a loader over tensors, and two methods."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from crossdistill.contracts import Batch, InputSpec, Method, ModelSpec, Outputs
from crossdistill.engine.progress import Quiet
from crossdistill.settings import TrainSettings

NUM_CLASSES = 4


def spec_of(name: str, num_classes: int = NUM_CLASSES, class_names: tuple[str, ...] | None = None) -> ModelSpec:
    inputs = InputSpec((6, 6), 1, (0.0,), (1.0,))
    return ModelSpec(name, "mlp", num_classes, 8, (), inputs, 100, class_names)


class SmallNet(nn.Module):
    """Flattened 6 x 6 images to 8 features to logits, with dropout, batch statistics or a stage where asked for."""

    def __init__(
        self,
        *,
        seed: int = 0,
        dropout: float = 0.0,
        batch_norm: bool = False,
        stages: bool = False,
        name: str = "small",
    ) -> None:
        super().__init__()
        self.stages = stages
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden, self.head = nn.Linear(36, 8), nn.Linear(8, NUM_CLASSES)
        self.norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.spec = spec_of(name)

    def forward(self, images: Tensor) -> Outputs:
        hidden = self.hidden(images.flatten(1))
        embedding = self.dropout(self.norm(hidden).relu())
        return Outputs(self.head(embedding), embedding, (hidden,) if self.stages else None)


class Alone(Method):
    """No losses of its own."""

    needs = frozenset()

    @classmethod
    def build(cls, student_spec, teacher_spec, *, num_classes, modules=None):
        return cls()

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        return {}


class Match(Alone):
    """Soft cross-entropy to the teacher, and a trained projector between embeddings."""

    needs = frozenset({"logits", "embedding"})

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.projector = nn.Linear(8, 8)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        soft = F.cross_entropy(student.require("logits"), teacher.require("logits").softmax(1))
        return {"soft": soft, "hint": F.mse_loss(self.projector(student.embedding), teacher.embedding)}


class Relate(Match):
    """Similarities between all pairs of samples, as the teacher has them."""

    relates_samples = True

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        assert len(batch) == len(student.logits) == len(teacher.embedding)
        mine, theirs = self.projector(student.embedding), teacher.embedding
        return {"relation": F.mse_loss(mine @ mine.T, theirs @ theirs.T)}


class RelateStages(Relate):
    """The same of the only stage, which alone is asked for."""

    needs = frozenset({"stages"})
    reads_stages = True

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        mine, theirs = self.projector(student.require_stages()[0]), teacher.require_stages()[0]
        assert len(batch) == len(mine) == len(theirs)
        if torch.distributed.is_initialized():
            assert teacher.logits is None
            assert teacher.embedding is None
        return {"relation": F.mse_loss(mine @ mine.T, theirs @ theirs.T)}


class RelateNoStages(Relate):
    """Networks have stages that nobody reads."""

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        if torch.distributed.is_initialized():
            assert student.stages is None
            assert teacher.stages is None
        return super().forward(student, teacher, batch)


class TwoHeads(nn.Module):
    """The student's features, as they are at that moment, with another classifier."""

    view = "student"

    def __init__(self, student: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.student, self.head = student, head

    def forward(self, images: Tensor) -> Outputs:
        assert not any(module.training for module in self.modules())
        return Outputs(logits=self.head(self.student(images).embedding))


class Measured(Match):
    """Trains a second classifier on the student's features and wants to know how good it is."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.second = nn.Linear(8, NUM_CLASSES)
        self.networks = (student,)  # no part of this module

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        second = F.cross_entropy(self.second(student.embedding), teacher.require("logits").argmax(1))
        return {**super().forward(student, teacher, batch), "second": second}

    def measured(self) -> dict[str, nn.Module]:
        return {"fused": TwoHeads(self.networks[0], self.second)}


class TensorLoader:
    """Shuffled, unaugmented batches of a data set that a linear rule labels; every ``unlabelled``-th has no label.

    Where ``soft``, each target ``(B, K)`` is the mean of two labels, or all zero where one of the two is missing.
    """

    def __init__(
        self,
        *,
        num_samples: int = 64,
        batch_size: int = 16,
        micro_batch: int | None = None,
        unlabelled: int | None = None,
        soft: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        generator = torch.Generator().manual_seed(11)
        self.images = torch.randn(num_samples, 1, 6, 6, generator=generator)
        rule = torch.randn(36, NUM_CLASSES, generator=generator)
        self.target = (self.images.flatten(1) @ rule).argmax(1)
        if unlabelled:
            self.target[::unlabelled] = -1
        self.soft = soft
        self.batch_size, self.micro_batch = batch_size, micro_batch
        self.rank, self.world_size = rank, world_size
        self.corrupt: dict[str, str] = {}

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.batch_size

    @property
    def class_counts(self) -> NDArray[np.int64]:
        return np.bincount(self.target[self.target >= 0].numpy(), minlength=NUM_CLASSES)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[list[Batch]]:
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(100 + epoch))
        for step in range(start_step, self.steps_per_epoch):
            ids = order[step * self.batch_size : (step + 1) * self.batch_size].tensor_split(self.world_size)[self.rank]
            yield [self._mixed(self._batch(part, epoch)) for part in ids.split(self.micro_batch or len(ids))]

    def _batch(self, ids: Tensor, epoch: int) -> Batch:
        images = self.images[ids]
        views = dict.fromkeys(("student", "teacher0", "teacher1"), images)
        return Batch(views, self.target[ids], ids, epoch)

    def _mixed(self, batch: Batch) -> Batch:
        if not self.soft:
            return batch
        labels = torch.stack([batch.target, self.target[(batch.sample_id + 1) % len(self.target)]])
        both = (labels >= 0).all(dim=0)[:, None]
        return replace(batch, target=F.one_hot(labels.clamp(min=0), NUM_CLASSES).float().mean(dim=0) * both)

    def evaluation(self) -> list[Batch]:
        """All images in order, in batches of 20, this process's share of them."""
        ids = torch.arange(len(self.images)).tensor_split(self.world_size)[self.rank]
        return [self._batch(part, 0) for part in ids.split(20)]


class Pictures(TensorLoader):
    """Three channels of noise under a coloured tint that tells the class, 32 pixels wide, for networks of timm."""

    def __init__(self, **changes: object) -> None:
        super().__init__(**{"num_samples": 24, "batch_size": 8, **changes})
        generator = torch.Generator().manual_seed(1)
        tint = torch.randn(NUM_CLASSES, 3, 1, 1, generator=generator)
        self.images = torch.randn(len(self.target), 3, 32, 32, generator=generator) + tint[self.target.clamp(min=0)]


class Stop(Quiet):
    """Asks for a stop after a step."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def stepped(self, step: int) -> None:
        if step == self.step:
            signal.raise_signal(self.number)


def settings(**changes: object) -> TrainSettings:
    """Short and quick to learn; keyword arguments replace any of it."""
    short = {"epochs": 3, "batch_size": 16, "lr": 0.02, "warmup_epochs": 0, "log_every": 3, "optimizer": "adamw"}
    if "steps" in changes:
        del short["epochs"]
    return TrainSettings.model_validate({**short, **changes})
