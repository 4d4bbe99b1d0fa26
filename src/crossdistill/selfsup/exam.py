"""How far a representation has come while it is learnt: its nearest neighbours, by labels that training never reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from crossdistill.contracts import STUDENT_VIEW, Batch, InputSpec
from crossdistill.data import EvalLoader, Splits
from crossdistill.data.philox import Purpose, random_order
from crossdistill.engine.following import settle
from crossdistill.selfsup.features import Features, extract
from crossdistill.selfsup.knn import knn_accuracy
from crossdistill.selfsup.settings import ProbeSettings
from crossdistill.teachers import MovingAverageTeacher

_FIXED_SEED = 0


@dataclass(frozen=True, slots=True)
class NeighbourExam:
    """k-NN accuracy of the student as ``top1``, and of the teacher that follows it as ``teacher_top1``.

    Attributes:
        bank: training images, without random changes, that vote.
        queries: the images that accuracy is reported on.
        teacher: measured beside the student, if there is one.
        notes: what must be said of the bank.
    """

    bank: EvalLoader
    queries: EvalLoader
    teacher: MovingAverageTeacher | None
    settings: ProbeSettings
    num_classes: int
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        splits: Splits,
        ids: NDArray[np.int64],
        view: InputSpec,
        teacher: MovingAverageTeacher | None,
        settings: ProbeSettings,
        **options: Any,
    ) -> Self:
        """The exam of a data set.

        Args:
            splits: the images.
            ids: labelled training images; of more than ``settings.bank`` the same random ones vote in every run.
            view: how the student wants its images; the teacher, which is made of it, wants them alike.
            teacher: or None.
            settings: neighbours, temperature, bank.
            options: of :class:`~crossdistill.data.EvalLoader`.
        """
        num_labelled, notes = len(ids), []
        if settings.bank is not None and len(ids) > settings.bank:
            ids = ids[random_order(len(ids), seed=_FIXED_SEED, purpose=Purpose.LIMIT)[: settings.bank]]
            notes.append(
                f"measured with {settings.bank:,} of {num_labelled:,} labelled training images, which vote and which "
                "the linear probe learns from; probe.bank=null takes all, and so does `crossdistill probe`"
            )
        if settings.neighbours > len(ids):
            notes.append(f"all {len(ids)} labelled training images vote: they are fewer than {settings.neighbours}")
        views = {STUDENT_VIEW: view}
        bank, queries = (
            EvalLoader(splits.train, views, ids=ids, **options),
            EvalLoader(splits.evaluation, views, **options),
        )
        return cls(bank, queries, teacher, settings, len(splits.class_names), tuple(notes))

    def examine(
        self, student: nn.Module, *, accelerator: Accelerator, channels_last: bool, max_batches: int | None
    ) -> dict[str, Any]:
        """Both networks' figures; with ``max_batches`` those of a trial."""
        figures = self.of_network(student, accelerator, max_batches=max_batches)
        if self.teacher is None:
            return figures
        settle(self.teacher)
        teacher = self.of_network(self.teacher.model, accelerator, max_batches=max_batches)
        return figures | {"teacher_top1": teacher["top1"]}

    def of_network(
        self, network: nn.Module, accelerator: Accelerator, *, max_batches: int | None = None
    ) -> dict[str, Any]:
        """Top-1 (and top-5) of one network and the number of images."""
        bank, queries = self.features(network, accelerator, max_batches=max_batches)
        neighbours = min(self.settings.neighbours, len(bank.targets))
        return knn_accuracy(
            bank,
            queries,
            num_classes=self.num_classes,
            neighbours=neighbours,
            temperature=self.settings.temperature,
        )

    def features(
        self, network: nn.Module, accelerator: Accelerator, *, max_batches: int | None = None
    ) -> tuple[Features, Features]:
        """What the network says of the bank and of the queries."""

        def said(loader: Iterable[Batch]) -> Features:
            return extract(network, islice(loader, max_batches), accelerator)

        return said(self.bank), said(self.queries)

    @property
    def corrupt(self) -> dict[str, str]:
        """Images that could not be read so far."""
        return self.bank.corrupt | self.queries.corrupt
