"""Batches on request, made in this process or in workers: what travels between them, and what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from crossdistill.contracts import Batch
from crossdistill.data.augment import EvalTransform, TrainTransform
from crossdistill.data.held import HeldSource, num_workers
from crossdistill.data.pixels import match_channels
from crossdistill.errors import InputError

Ids = NDArray[np.int64]
Request = tuple[int, Ids]
"""Epoch, and the ids of one micro-batch."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a worker sends back; bad input travels as its three phrases, since exceptions lose them on the way."""

    batch: Batch | None
    corrupt: dict[str, str]
    bad_input: tuple[str, str, str] | None = None


class Batches(Dataset[_Answer]):
    """Makes whole batches on request, in this process or a worker."""

    def __init__(
        self, source: HeldSource, targets: NDArray[np.int64], transform: TrainTransform | EvalTransform
    ) -> None:
        self.source, self.targets, self.transform = source, targets, transform

    def __getitem__(self, request: Request) -> _Answer:
        try:
            return self._answer(*request)
        except InputError as error:
            return _Answer(None, {}, (error.given, error.expected, error.action))

    def _answer(self, epoch: int, ids: Ids) -> _Answer:
        reading = self.source.read_batch(ids)
        corrupt = {image.where: image.reason for image in reading.corrupt}
        ids = ids[reading.positions]
        if not len(ids):
            return _Answer(None, corrupt)
        images = match_channels(
            reading.images, self.transform.views.values(), lambda position: self.source.describe(int(ids[position]))
        )
        target, sample_id = torch.from_numpy(self.targets[ids]), torch.from_numpy(ids)
        return _Answer(Batch(self.transform(images, ids, epoch), target, sample_id, epoch), corrupt)


class Feed:
    """Sends requests through a DataLoader, counts corrupt images, and raises bad input in the process that asked."""

    def __init__(self, dataset: Batches, num_images: int, *, workers: int | None, max_corrupt_share: float) -> None:
        self.corrupt: dict[str, str] = {}
        self._num_images, self._max_corrupt_share = num_images, max_corrupt_share
        self._requests: list[Request] = []
        self._dataset, self._num_workers = dataset, num_workers(dataset.source, workers)
        self._loader = self._new_loader()

    def __call__(self, requests: Sequence[Request]) -> Iterator[Batch | None]:
        """Answer the requests in order; ``None`` where no image of a request could be read."""
        self._requests[:] = requests
        try:
            for answer in self._loader:
                yield self._checked(answer)
        except InputError:
            # Workers stop at once when their loader is dropped, but after seconds when a traceback still holds it.
            self._loader = self._new_loader()
            raise

    def _new_loader(self) -> DataLoader[Any]:
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._requests,
            num_workers=self._num_workers,
            collate_fn=_as_it_is,
            persistent_workers=self._num_workers > 0,
            generator=torch.Generator(),  # its draws must not move the generator that training uses
        )

    def _checked(self, answer: _Answer) -> Batch | None:
        if answer.bad_input is not None:
            raise InputError(*answer.bad_input)
        self.corrupt.update(answer.corrupt)
        self._check_corrupt()
        return answer.batch

    def _check_corrupt(self) -> None:
        share = len(self.corrupt) / self._num_images
        if share <= self._max_corrupt_share:
            return
        first = "; ".join(f"{where} ({reason})" for where, reason in list(self.corrupt.items())[:3])
        raise InputError(
            f"{len(self.corrupt)} of {self._num_images} images cannot be read ({share:.1%}), first {first}",
            f"at most {self._max_corrupt_share:.1%} unreadable images",
            "mend or remove them, or raise data.max_corrupt_share",
        )


def _as_it_is(answer: Any) -> Any:
    return answer
