"""Batches from remote shards, for training and evaluation, where nothing is known of a sample before it comes.

The documented exception to what holds for every other source: a stream that is resumed goes on with a whole shard, and
the order of its samples depends on the number of processes and workers. Augmentation does not: a sample's id is a hash
of its shard's name and its key.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from crossdistill.contracts import Batch, InputSpec
from crossdistill.data.assemble import EvalAssembly, TrainAssembly, Transform
from crossdistill.data.augmentation.multi_view import MultiViewTransform
from crossdistill.data.augmentation.transform import EvalTransform, TrainTransform, resolve_augment
from crossdistill.data.feed import Answer, Tally, as_it_is, pins
from crossdistill.data.held import Reading, num_cores
from crossdistill.data.loader import EvalLoader, epoch_shown
from crossdistill.data.sampler import batches, num_steps
from crossdistill.data.shards.fetch import RemoteSample, fetch
from crossdistill.data.shards.labels import ShardClasses
from crossdistill.data.shards.lanes import endless, lane_draws, own_lane, shard_order
from crossdistill.data.shards.stream import Stream
from crossdistill.data.source import CorruptImage, Source
from crossdistill.data.sources.decode import decode
from crossdistill.errors import InputError
from crossdistill.settings import AugmentSettings

Ids = NDArray[np.int64]

_UNKNOWN = np.empty(0, dtype=np.int64)


class StreamLoader:
    """Augmented batches from a stream; the same for the same seed, epoch, and number of processes and workers.

    Each process reads shards of its own, and so does each of its workers. An epoch ends after ``num_train`` images;
    who comes to the end of their shards before begins with them again. A resumed epoch passes over the shards that
    must have been read: samples of the one that was being read come again, and those that waited in the shuffle
    buffer are left out, at most :data:`~crossdistill.data.shards.lanes.BUFFER_SIZE` a worker.

    Args:
        views, augment, seed, batch_size, device_batch_size, augment_device, workers, rank, world_size, cycle_epochs,
            transform: as for :class:`~crossdistill.data.loader.TrainLoader`.
        max_corrupt_share: share of this process's samples that may be unreadable; such samples are left out.

    Raises:
        InputError: fewer shards than processes, or sizes that do not divide.
    """

    def __init__(
        self,
        stream: Stream,
        views: Mapping[str, InputSpec],
        augment: AugmentSettings,
        *,
        seed: int,
        batch_size: int,
        device_batch_size: int | None = None,
        augment_device: torch.device | None = None,
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        max_corrupt_share: float = 0.01,
        cycle_epochs: int | None = None,
        transform: MultiViewTransform | None = None,
    ) -> None:
        made_by: Transform = transform or TrainTransform(dict(views), resolve_augment(augment, stream), seed)
        self.ids = np.arange(stream.num_train or 0, dtype=np.int64)
        self.stream, self.augment, self.seed = stream, made_by.settings, seed
        self.batch_size, self.augment_device, self.cycle_epochs = batch_size, augment_device, cycle_epochs
        self.rank, self.world_size = rank, world_size
        _check_shards(stream, world_size)
        one_step = np.zeros((min(batch_size, len(self.ids)), 2), dtype=np.int64)
        (parts,) = batches(
            one_step, batch_size=batch_size, rank=rank, world_size=world_size, device_batch_size=device_batch_size
        )
        self._sizes = [len(part) for part in parts]
        on_device = augment_device is not None
        self._pin_memory = pins(augment_device)
        self._assembly = TrainAssembly(made_by, _UNKNOWN, len(stream.class_names), on_device=on_device)
        self._num_workers = _num_workers(workers, stream, rank, world_size)
        self._tally = Tally(-(-len(self.ids) // world_size), max_corrupt_share)  # a process meets its own only

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return num_steps(len(self.ids), self.batch_size)

    @property
    def corrupt(self) -> dict[str, str]:
        """Samples that could not be read so far: shard and key -> reason."""
        return self._tally.corrupt

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[list[Batch]]:
        """This process's micro-batches of each step; from a later step on, those of the shards that are left."""
        steps, epoch = range(start_step, self.steps_per_epoch), epoch_shown(epoch, self.cycle_epochs)
        lanes = _TrainLanes(
            self.stream,
            self._assembly,
            shard_order(self.stream.shards, seed=self.seed, epoch=epoch)[self.rank :: self.world_size],
            sizes=self._sizes * len(steps),
            epoch=epoch,
            num_read=start_step * sum(self._sizes),
            rank=self.rank,
        )
        answers = iter(_loader(lanes, self._num_workers, self._pin_memory))
        try:
            for _ in steps:
                opened = (self._tally.open(next(answers)) for _ in self._sizes)
                made = [self._assembly.complete(one, self.augment_device) for one in opened]
                yield [batch for batch in made if batch is not None]
        except InputError:
            del answers  # workers stop when nobody holds their loader any more; the traceback would
            raise


class StreamEvalLoader:
    """Every sample of a stream once, without random changes; processes and workers share out whole shards.

    Without workers, or with one, samples come in the order of the shards.
    """

    def __init__(
        self,
        stream: Stream,
        views: Mapping[str, InputSpec],
        *,
        batch_size: int,
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        max_corrupt_share: float = 0.01,
        crop_pct: float | None = None,
    ) -> None:
        own = stream.shards[rank::world_size]
        assembly = EvalAssembly(EvalTransform(dict(views), crop_pct), _UNKNOWN)
        self._lanes = _EvalLanes(stream, assembly, own, batch_size=batch_size)
        self._num_workers = _num_workers(workers, stream, rank, world_size)
        self._tally, self._pin_memory = Tally(None, max_corrupt_share), pins(None)

    @property
    def corrupt(self) -> dict[str, str]:
        """Samples that could not be read so far: shard and key -> reason."""
        return self._tally.corrupt

    def __iter__(self) -> Iterator[Batch]:
        num_read = 0
        for answer in _loader(self._lanes, self._num_workers, self._pin_memory):
            made = self._tally.open(answer)
            if isinstance(made, Batch):
                num_read += len(made)
                yield made
        if self.corrupt:
            self._tally.check(num_read + len(self.corrupt))


def eval_loader(source: Source, views: Mapping[str, InputSpec], **options: Any) -> EvalLoader | StreamEvalLoader:
    """The loader that fits the source; options are those that both take."""
    if isinstance(source, Stream):
        return StreamEvalLoader(source, views, **options)
    return EvalLoader(source, views, **options)


@dataclass(frozen=True, slots=True)
class _ById:
    """Classes of the samples of one batch by their id."""

    targets: Mapping[int, int]

    def __getitem__(self, ids: Ids, /) -> Ids:
        return np.array([self.targets[one] for one in ids.tolist()], dtype=np.int64)


class _Lanes(IterableDataset[Answer], ABC):
    """What one worker reads of a process's shards, as answers."""

    def __init__(
        self, stream: Stream, assembly: TrainAssembly | EvalAssembly, shards: Sequence[str], epoch: int
    ) -> None:
        self.classes, self.assembly, self.shards, self.epoch = stream.classes, assembly, shards, epoch

    def __iter__(self) -> Iterator[Answer]:
        lane, num_lanes = own_lane()
        try:
            for samples in self.parts(self.shards[lane::num_lanes], lane, num_lanes):
                yield self.answer(samples)
        except InputError as error:
            yield Answer(None, {}, (error.given, error.expected, error.action))

    @abstractmethod
    def parts(self, shards: Sequence[str], lane: int, num_lanes: int) -> Iterator[list[tuple[int, RemoteSample]]]:
        """Samples of each micro-batch, with the number of times that each came before."""

    def answer(self, samples: list[tuple[int, RemoteSample]]) -> Answer:
        """A batch of those samples that can be read."""
        results = [_decoded(sample, self.classes) for _, sample in samples]
        reading = Reading.of([result if isinstance(result, CorruptImage) else result[0] for result in results])
        corrupt = {image.where: image.reason for image in reading.corrupt}
        if not len(reading.positions):
            return Answer(None, corrupt)
        ids = [sample.sample_id for _, sample in samples]
        targets = {one: result[1] for one, result in zip(ids, results, strict=True) if isinstance(result, tuple)}
        wheres = {one: sample.where for one, (_, sample) in zip(ids, samples, strict=True)}
        rows = np.array([[one, again] for one, (again, _) in zip(ids, samples, strict=True)], dtype=np.int64)
        assembly = replace(self.assembly, targets=_ById(targets))
        return Answer(assembly.make(reading, self.epoch, rows, wheres.__getitem__), corrupt)


class _TrainLanes(_Lanes):
    """Shuffled samples without end, in micro-batches of the given sizes: lane k of n makes every n-th from the k-th."""

    def __init__(
        self,
        stream: Stream,
        assembly: TrainAssembly,
        shards: Sequence[str],
        *,
        sizes: Sequence[int],
        epoch: int,
        num_read: int,
        rank: int,
    ) -> None:
        super().__init__(stream, assembly, shards, epoch)
        self.sizes, self.num_read, self.rank, self.seed = sizes, num_read, rank, assembly.transform.seed
        self.mean_size = (stream.num_train or 1) / len(stream.shards)

    def parts(self, shards: Sequence[str], lane: int, num_lanes: int) -> Iterator[list[tuple[int, RemoteSample]]]:
        """Samples of each micro-batch; those of shards that must have been read before are passed over."""
        first = int(self.num_read / num_lanes / self.mean_size) % len(shards)
        draws = lane_draws(self.seed, self.epoch, self.rank * num_lanes + lane)
        samples = endless(shards, fetch, first=first, draws=draws)
        return (list(islice(samples, size)) for size in self.sizes[lane::num_lanes])


class _EvalLanes(_Lanes):
    """Samples in order, in batches of one size."""

    def __init__(self, stream: Stream, assembly: EvalAssembly, shards: Sequence[str], *, batch_size: int) -> None:
        super().__init__(stream, assembly, shards, epoch=0)
        self.batch_size = batch_size

    def parts(self, shards: Sequence[str], lane: int, num_lanes: int) -> Iterator[list[tuple[int, RemoteSample]]]:
        """Samples of each batch, the last one of what is left."""
        samples = ((0, sample) for shard in shards for sample in fetch(shard))
        while part := list(islice(samples, self.batch_size)):
            yield part


def _decoded(sample: RemoteSample, classes: ShardClasses) -> tuple[Tensor, int] | CorruptImage:
    """Image and class; a label that is no class is bad input, since it will hardly be the only one."""
    try:
        image = decode(io.BytesIO(sample.image()), sample.where)
        return image, classes.target(sample.label(), sample.where)
    except CorruptImage as corrupt:
        return corrupt


def _loader(lanes: _Lanes, num_workers: int, pin_memory: bool) -> DataLoader[Any]:
    return DataLoader(
        lanes,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=as_it_is,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its draws must not move the generator that training uses
    )


def _num_workers(workers: int | None, stream: Stream, rank: int, world_size: int) -> int:
    """As asked for, else up to four, but no more than the process has shards."""
    num_shards = len(stream.shards[rank::world_size])
    return min(num_shards, min(4, num_cores()) if workers is None else workers)


def _check_shards(stream: Stream, world_size: int) -> None:
    if len(stream.shards) < world_size:
        raise InputError(
            f"{stream.name}: {len(stream.shards)} remote training shard(s) for {world_size} processes",
            "at least one shard for every process",
            "start fewer processes, or write the same images into more shards",
        )
