"""Batches for training and evaluation; what they hold never depends on the number of workers or processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crossdistill.contracts import Batch, InputSpec
from crossdistill.data.assemble import EvalAssembly, TrainAssembly, Transform
from crossdistill.data.augmentation.multi_view import MultiViewTransform
from crossdistill.data.augmentation.transform import EvalTransform, TrainTransform, resolve_augment
from crossdistill.data.feed import Batches, Feed
from crossdistill.data.held import HeldSource
from crossdistill.data.pixels import check_channels
from crossdistill.data.prepared import PreparedBatches, PreparedViews
from crossdistill.data.resident import Resident
from crossdistill.data.sampler import Order, batches, check_sizes, class_balanced, num_steps, shuffled
from crossdistill.data.source import Source
from crossdistill.settings import AugmentSettings

Ids = NDArray[np.int64]


class TrainLoader:
    """Augmented batches of the training images, step by step.

    Args:
        ids: the images to train on, by their id in the source.
        targets: class of every image of the source ``(N,)``, -1 for unlabelled.
        views: what each network wants to see, by view.
        augment: random changes; what is ``None`` is chosen by the source.
        batch_size: images a step, over all processes; a smaller set makes one step of all it has.
        device_batch_size: most images at once; larger shares become several micro-batches.
        balanced: show every class equally often (by its ``targets``), instead of every image once.
        augment_device: change pixels there, in this process, instead of in the loader's processes.
        workers: loader processes; default none for small sets, which are held in memory, and up to four for others.
            None for small sets whose pixels are changed on a device, where they then live.
        max_corrupt_share: stop when more of the images than this cannot be read; until then they are left out.
        cycle_epochs: epoch e is epoch e % this one again, in its order and its changes; a batch names the latter.
        transform: makes views for pretraining; ``views`` and ``augment`` then have no say.

    Raises:
        InputError: sizes that do not divide, or images whose channels a model cannot take.
    """

    def __init__(
        self,
        source: Source,
        ids: Ids,
        targets: NDArray[np.int64],
        views: Mapping[str, InputSpec],
        augment: AugmentSettings,
        *,
        seed: int,
        batch_size: int,
        device_batch_size: int | None = None,
        balanced: bool = False,
        augment_device: torch.device | None = None,
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        max_corrupt_share: float = 0.01,
        cycle_epochs: int | None = None,
        transform: MultiViewTransform | None = None,
    ) -> None:
        check_sizes(len(ids), batch_size, world_size, device_batch_size)
        made_by: Transform = transform or TrainTransform(dict(views), resolve_augment(augment, source), seed)
        held = _held(source, made_by.views)
        self.ids, self.augment, self.seed = ids, made_by.settings, seed
        self.batch_size, self.device_batch_size = batch_size, device_batch_size
        self.rank, self.world_size = rank, world_size
        self.targets, self.balanced, self.augment_device = targets, balanced, augment_device
        self.cycle_epochs = cycle_epochs
        self._num_classes = len(source.class_names)
        self._assembly = TrainAssembly(
            made_by,
            targets,
            self._num_classes,
            on_device=augment_device is not None,
            whole=_travels_whole(held, made_by.views),
        )
        own = -(-len(ids) // world_size)
        self._feed: Feed | Resident
        if augment_device is not None and self._assembly.whole and held.in_memory:
            allowed: dict[str, Any] = {"num_images": own, "max_corrupt_share": max_corrupt_share}
            self._feed = Resident(held, self._assembly, ids, augment_device, **allowed)
        else:
            options: dict[str, Any] = {"workers": workers, "max_corrupt_share": max_corrupt_share}
            self._feed = Feed(Batches(held, self._assembly), own, device=augment_device, **options)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Labelled training images of each class ``(K,)``."""
        own = self.targets[self.ids]
        return np.bincount(own[own >= 0], minlength=self._num_classes)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return num_steps(len(self.ids), self.batch_size)

    @property
    def corrupt(self) -> dict[str, str]:
        """Images that could not be read so far: path or row -> reason."""
        return self._feed.corrupt

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[list[Batch]]:
        """This process's micro-batches of each step, from ``start_step`` on exactly those of the full epoch.

        A micro-batch of which no image can be read is left out of its step's list.
        """
        plan = self.plan(epoch)
        answers = self._answers(
            [(epoch, samples) for step in plan for samples in step], sum(map(len, plan[:start_step]))
        )
        for step in plan[start_step:]:
            micro_batches = [next(answers) for _ in step]
            yield [batch for batch in micro_batches if batch is not None]

    def plan(self, epoch: int, *, drop_last: bool = True) -> list[list[Order]]:
        """This process's micro-batches of each step: samples ``(B, 2)``, each an id and how often it came before.

        Args:
            drop_last: leave out the images that fill no step; else they make one more, which :meth:`epoch` never takes.
        """
        steps = batches(
            self._order(epoch_shown(epoch, self.cycle_epochs)),
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            device_batch_size=self.device_batch_size,
            drop_last=drop_last,
        )
        return [[self._samples(part) for part in step] for step in steps]

    def shown(self, epoch: int) -> Ids:
        """The images of an epoch, those of all processes, by id ``(M,)``, sorted."""
        return np.unique(self.ids[self._order(epoch_shown(epoch, self.cycle_epochs))[:, 0]])

    def answers(self, requests: Sequence[tuple[int, Order]]) -> Iterator[Batch | None]:
        """A finished batch for each (epoch, samples ``(B, 2)``), in order, while the next ones are being made.

        Whole pairs of a :meth:`plan` (and the single one after them) are as in their epoch. Not while an epoch is
        being read; ``None`` where no image of a request can be read.
        """
        return self._answers(requests, 0)

    def batch(self, epoch: int, samples: Order) -> Batch | None:
        """These samples alone, as :meth:`answers` makes them."""
        (made,) = self.answers([(epoch, samples)])
        return made

    def _answers(self, requests: Sequence[tuple[int, Order]], start: int) -> Iterator[Batch | None]:
        shown = [(epoch_shown(epoch, self.cycle_epochs), samples) for epoch, samples in requests]
        return (self._assembly.complete(made, self.augment_device) for made in self._feed(shown, start=start))

    def _order(self, epoch: int) -> Order:
        if self.balanced:
            return class_balanced(self.targets[self.ids], seed=self.seed, epoch=epoch)
        return shuffled(len(self.ids), seed=self.seed, epoch=epoch)

    def _samples(self, part: Order) -> Order:
        return np.stack([self.ids[part[:, 0]], part[:, 1]], axis=1)


def epoch_shown(epoch: int, cycle_epochs: int | None) -> int:
    """Which epoch's order and changes this one has, where epochs come again."""
    return epoch if cycle_epochs is None else epoch % cycle_epochs


class EvalLoader:
    """Every image once, in canonical order, without random changes; several processes share them out.

    What the networks are to see of an image is kept from the first pass on, as uint8, where that fits the limit of
    what a source keeps (512 MiB); later passes only normalise it.

    Args:
        ids: images to take, by id; default all of the source.
        crop_pct: share of the side that is shown; default as each model says, but tiny images whole.
    """

    def __init__(
        self,
        source: Source,
        views: Mapping[str, InputSpec],
        *,
        batch_size: int,
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        max_corrupt_share: float = 0.01,
        ids: Ids | None = None,
        crop_pct: float | None = None,
    ) -> None:
        everything = np.arange(len(source.targets), dtype=np.int64) if ids is None else np.sort(ids)
        self.ids, self.batch_size = np.array_split(everything, world_size)[rank], batch_size
        held, transform = _held(source, views), EvalTransform(dict(views), crop_pct)
        self._prepared = PreparedViews.fitting(held, transform, self.ids)
        dataset = PreparedBatches(held, EvalAssembly(transform, source.targets), self._prepared)
        self._feed = Feed(dataset, max(1, len(self.ids)), workers=workers, max_corrupt_share=max_corrupt_share)

    @property
    def corrupt(self) -> dict[str, str]:
        """Images that could not be read so far: path or row -> reason."""
        return self._feed.corrupt

    def __len__(self) -> int:
        return -(-len(self.ids) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        if self._prepared is not None and self._prepared.complete:
            self._feed.end_workers()  # what is left to do costs less than sending it from one process to another
        starts = range(0, len(self.ids), self.batch_size)
        samples = np.stack([self.ids, np.zeros_like(self.ids)], axis=1)
        answers = self._feed([(0, samples[start : start + self.batch_size]) for start in starts])
        return (batch for batch in answers if isinstance(batch, Batch))


def _held(source: Source, views: Mapping[str, InputSpec]) -> HeldSource:
    first = source.describe(0) if len(source.targets) else "none"
    for spec in views.values():
        check_channels(source.num_channels or 1, spec, f"{first} (as the others of {source.name})")
    return source if isinstance(source, HeldSource) else HeldSource(source)


def _travels_whole(source: HeldSource, views: Mapping[str, InputSpec]) -> bool:
    """Whether all images have one size, and not many more pixels than what is cut out of them."""
    largest = max(math.prod(spec.image_size) for spec in views.values())
    return source.image_size is not None and math.prod(source.image_size) <= 4 * largest
