"""Batches on request, made in this process or in workers: what travels between them, and what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from crossdistill.contracts import Batch
from crossdistill.data.assemble import Assembly, Made, Started
from crossdistill.data.held import HeldSource, num_workers
from crossdistill.errors import InputError

Request = tuple[int, NDArray[np.int64]]
"""Epoch, and the samples of one micro-batch ``(B, 2)``: id, and how often it came before in this epoch."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker sends back; bad input travels as its three phrases, since exceptions lose them on the way."""

    made: Made | None
    corrupt: dict[str, str]
    bad_input: tuple[str, str, str] | None = None

    def pin_memory(self) -> Answer:
        """The same in memory from which copying to a GPU waits for nothing."""
        made = self.made.pin_memory() if isinstance(self.made, Started) else self.made
        return replace(self, made=_pinned(made) if isinstance(made, Batch) else made)


class Batches(Dataset[Answer]):
    """Makes whole batches on request, in this process or a worker."""

    def __init__(self, source: HeldSource, assembly: Assembly) -> None:
        self.source, self.assembly = source, assembly

    def __getitem__(self, request: Request) -> Answer:
        try:
            return self.answer(*request)
        except InputError as error:
            return Answer(None, {}, (error.given, error.expected, error.action))

    def answer(self, epoch: int, samples: NDArray[np.int64]) -> Answer:
        """A batch of those images that can be read, and what could not be."""
        reading = self.source.read_batch(samples[:, 0])
        corrupt = {image.where: image.reason for image in reading.corrupt}
        if not len(reading.positions):
            return Answer(None, corrupt)
        return Answer(self.assembly.make(reading, epoch, samples, self.source.describe), corrupt)


class Tally:
    """Opens the answers of workers: counts corrupt images, and raises bad input in the process that asked.

    Args:
        num_images: of how many images the corrupt ones are a share; ``None`` where that is known at the end only.
    """

    def __init__(self, num_images: int | None, max_corrupt_share: float) -> None:
        self.corrupt: dict[str, str] = {}
        self._num_images, self._max_corrupt_share = num_images, max_corrupt_share

    def open(self, answer: Answer) -> Made | None:
        """What the worker made, if the images of its request could be read."""
        if answer.bad_input is not None:
            raise InputError(*answer.bad_input)
        self.corrupt.update(answer.corrupt)
        if self._num_images is not None:
            self.check(self._num_images)
        return answer.made

    def check(self, num_images: int) -> None:
        """Refuse to go on when more of so many images are corrupt than is allowed."""
        share = len(self.corrupt) / num_images
        if share <= self._max_corrupt_share:
            return
        first = "; ".join(f"{where} ({reason})" for where, reason in list(self.corrupt.items())[:3])
        raise InputError(
            f"{len(self.corrupt)} of {num_images} images cannot be read ({share:.1%}), first {first}",
            f"at most {self._max_corrupt_share:.1%} unreadable images",
            "mend or remove them, or raise data.max_corrupt_share",
        )


class Feed:
    """Sends requests through a DataLoader, and opens the answers.

    Args:
        device: where batches will be finished; ``None`` if they come finished from the workers.
    """

    def __init__(
        self,
        dataset: Batches,
        num_images: int,
        *,
        workers: int | None,
        max_corrupt_share: float,
        device: torch.device | None = None,
    ) -> None:
        self._pin_memory = pins(device)
        self._tally = Tally(num_images, max_corrupt_share)
        self._requests: list[Request] = []
        self._dataset = dataset
        self._num_workers = num_workers(dataset.source, workers, cheap=dataset.assembly.cheap)
        if self._num_workers:
            dataset.source.share()
        self._loader = self._new_loader()

    @property
    def corrupt(self) -> dict[str, str]:
        """Images that could not be read so far: path or row -> reason."""
        return self._tally.corrupt

    def __call__(self, requests: Sequence[Request], *, start: int = 0) -> Iterator[Made | None]:
        """Answer the requests from ``start`` on, in order; ``None`` where no image of a request could be read."""
        self._requests[:] = requests[start:]
        try:
            for answer in self._loader:
                yield self._tally.open(answer)
        except InputError:
            # Workers stop at once when their loader is dropped, but after seconds when a traceback still holds it.
            self._loader = self._new_loader()
            raise

    def end_workers(self) -> None:
        """Answer in this process from now on."""
        if self._num_workers:
            self._num_workers = 0
            self._loader = self._new_loader()  # workers end with the loader that they were of

    def _new_loader(self) -> DataLoader[Any]:
        return DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._requests,
            num_workers=self._num_workers,
            collate_fn=as_it_is,
            persistent_workers=self._num_workers > 0,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # its draws must not move the generator that training uses
        )


def _pinned(batch: Batch) -> Batch:
    """The batch in pinned memory; views that share a tensor go on sharing it."""
    distinct = {id(images): images for images in batch.images.values()}
    pinned = {key: images.pin_memory() for key, images in distinct.items()}
    return replace(
        batch,
        images={view: pinned[id(images)] for view, images in batch.images.items()},
        target=batch.target.pin_memory(),
        sample_id=batch.sample_id.pin_memory(),
    )


def pins(device: torch.device | None) -> bool:
    """Whether batches are pinned on their way: if they go to a GPU, or may go to one."""
    return torch.cuda.is_available() and (device is None or device.type == "cuda")


def as_it_is(answer: Any) -> Any:
    """What a DataLoader is to do with an answer: nothing."""
    return answer
