"""From images that were read to a batch: transform, targets, and for training mixtures of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.contracts import UNLABELLED, Batch, InputSpec
from crossdistill.data.augmentation.mix import Mixing, draw_mixing, mix_targets, mix_views, mixes
from crossdistill.data.augmentation.multi_view import MultiViewTransform
from crossdistill.data.augmentation.transform import Cuts, Draws, EvalTransform, TrainTransform
from crossdistill.data.held import Images, Reading
from crossdistill.data.pixels import match_channels
from crossdistill.data.placing import placed
from crossdistill.data.source import TINY_SIDE

Ids = NDArray[np.int64]

Transform = TrainTransform | MultiViewTransform
"""What changes images for training: all views alike, or each in its own way for pretraining."""


@dataclass(frozen=True, slots=True)
class Started:
    """A training batch whose pixels are still to be changed: whole images of one size, or what was cut out of each."""

    images: Tensor | Cuts
    target: Ids
    samples: Ids
    epoch: int
    draws: Draws
    mixing: Mixing | None

    def to(self, device: torch.device) -> Started:
        """The same on another device."""
        return self._with_images(lambda images: images.to(device, non_blocking=True))

    def pin_memory(self) -> Started:
        """The same in memory from which copying to a GPU waits for nothing."""
        return self._with_images(Tensor.pin_memory)

    def _with_images(self, change: Callable[[Tensor], Tensor]) -> Started:
        if isinstance(self.images, Tensor):
            return replace(self, images=change(self.images))
        return replace(self, images={shape: change(cut) for shape, cut in self.images.items()})


Made = Batch | Started
"""What a loader process makes: a batch, or one that is to be finished on the device that trains."""


class Targets(Protocol):
    """Classes by id: an array over the whole source, or what is known of the samples of a stream."""

    def __getitem__(self, ids: Ids, /) -> Ids: ...


class Assembly(Protocol):
    """Makes batches of what was read; ``cheap`` where that costs little beside decoding the images."""

    @property
    def cheap(self) -> bool: ...

    def make(self, reading: Reading, epoch: int, samples: Ids, where: Callable[[int], str]) -> Made:
        """A batch of the images that could be read.

        Args:
            samples: what was asked for ``(B, 2)``: id and occurrence.
            where: names the image of an id, for messages.
        """
        ...


@dataclass(frozen=True, slots=True)
class EvalAssembly:
    """Batches that accuracy is measured on."""

    transform: EvalTransform
    targets: Targets

    @property
    def cheap(self) -> bool:
        """Whether images only become small."""
        return _small(self.transform.views)

    def make(self, reading: Reading, epoch: int, samples: Ids, where: Callable[[int], str]) -> Batch:
        """Nothing random, and classes as targets."""
        kept = samples[reading.positions]
        return self.finish(self.prepare(reading, kept[:, 0], where), kept, epoch)

    def prepare(self, reading: Reading, ids: Ids, where: Callable[[int], str]) -> dict[InputSpec, Tensor]:
        """uint8 views of the images that could be read, whose ids ``(B,)`` these are, by kind."""
        return self.transform.prepare(_matched(reading, ids, self.transform, where))

    def finish(self, prepared: Mapping[InputSpec, Tensor], samples: Ids, epoch: int) -> Batch:
        """A batch of these views."""
        return _batch(self.transform.normalise(prepared), self.targets[samples[:, 0]], samples, epoch)


@dataclass(frozen=True, slots=True)
class TrainAssembly:
    """Batches to train on; ``on_device`` leaves pixels to :meth:`finish`, in the process that asked.

    ``whole``: all images are of one size and small, and then travel as they are; else what was cut out of each does.
    """

    transform: Transform
    targets: Targets
    num_classes: int
    on_device: bool = False
    whole: bool = False

    @property
    def cheap(self) -> bool:
        """Whether little is done to pixels here, or only to small images."""
        return self.on_device or (_small(self.transform.views) and not self.transform.changes_colours)

    def make(self, reading: Reading, epoch: int, samples: Ids, where: Callable[[int], str]) -> Made:
        """Draw all parameters; change pixels, or only cut what cannot travel as one tensor."""
        kept = samples[reading.positions]
        target = self.targets[kept[:, 0]]
        images = _matched(reading, kept[:, 0], self.transform, where)
        draws = self.transform.draw(kept[:, 0], epoch, kept[:, 1])
        settings, mixing = self.transform.settings, None
        if mixes(settings):
            mixing = draw_mixing(settings, self.transform.seed, epoch, samples, reading.positions)
            mixing = mixing.alike(target != UNLABELLED)
        travels = images if self.whole and isinstance(images, Tensor) else self.transform.cut(images, draws)
        started = Started(travels, target, kept, epoch, draws, mixing)
        return started if self.on_device else self.finish(started)

    def complete(self, made: Made | None, device: torch.device | None) -> Batch | None:
        """A batch of what a worker made: as it is, or finished on this device."""
        if not isinstance(made, Started):
            return made
        return self.finish(made if device is None else made.to(device))

    def finish(self, started: Started) -> Batch:
        """Change the pixels, wherever they lie, and mix neighbours; with these, targets are class probabilities."""
        images, mixing = started.images, started.mixing
        cuts = self.transform.cut(images, started.draws) if isinstance(images, Tensor) else images
        views = self.transform.render(cuts, started.draws)
        batch = _batch(views, started.target, started.samples, started.epoch)
        if mixing is None:
            return batch
        mix_views(views, mixing)
        first = next(iter(views.values()))
        size = first.shape[-2], first.shape[-1]
        return replace(batch, target=mix_targets(batch.target, mixing, size, self.num_classes))


def _small(views: Mapping[str, InputSpec]) -> bool:
    return max(max(spec.image_size) for spec in views.values()) <= TINY_SIDE


def _matched(reading: Reading, ids: Ids, transform: Transform | EvalTransform, where: Callable[[int], str]) -> Images:
    return match_channels(reading.images, transform.views.values(), lambda position: where(int(ids[position])))


def _batch(views: dict[str, Tensor], targets: Ids, samples: Ids, epoch: int) -> Batch:
    """Everything beside the images, but for ``samples``, comes to where these are."""
    device = next(iter(views.values())).device
    sample_id = placed(np.ascontiguousarray(samples[:, 0]), device)
    return Batch(views, placed(targets, device), sample_id, epoch, torch.from_numpy(samples))
