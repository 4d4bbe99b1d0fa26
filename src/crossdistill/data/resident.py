"""Small sets that live on the device that trains: decoded once, and each batch is picked there by index."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.contracts import UNLABELLED, Batch
from crossdistill.data.assemble import Made, Started, TrainAssembly
from crossdistill.data.augmentation.mix import draw_mixing, mixes
from crossdistill.data.feed import Batches, Feed, Request, Tally
from crossdistill.data.held import HeldSource
from crossdistill.data.placing import placed

Ids = NDArray[np.int64]

_DRAWN_TOGETHER = 2**14
"""Samples whose random draws are made at once."""

_GROUP_BYTES, _LARGEST_GROUP = 32 * 2**20, 16
"""On an accelerator so many micro-batches are changed together, as float32 pixels of all views.

While they are changed, more is in use, since changes have intermediate results: up to 1.75 times as much by PyTorch's
count of allocations on a CPU (crops, padding, RandAugment with mixing, at 32 and 128 px). On a GPU it is not measured.
"""


class Resident:
    """Answers requests for batches as :class:`~crossdistill.data.feed.Feed` does, from pixels on a device.

    An image is decoded and brought there when it is first asked for; from then on a batch costs no transfer of pixels
    and no loader process. A micro-batch with an image that cannot be kept (unreadable, or of another size) is read as
    if nothing were kept. Several micro-batches are changed together on an accelerator, where a step costs the same for
    few images and many; which ones depends on their places in the list of requests alone. Where the device has no room
    for the set, there is a warning, and batches are made as if nothing were kept.

    Args:
        source: images of one size that it keeps.
        ids: images that may be asked for.
        num_images: of how many images the corrupt ones are a share.
        group_size: micro-batches that are changed together; default as many as fit.
    """

    def __init__(
        self,
        source: HeldSource,
        assembly: TrainAssembly,
        ids: Ids,
        device: torch.device,
        *,
        num_images: int,
        max_corrupt_share: float,
        group_size: int | None = None,
    ) -> None:
        self._source, self._assembly, self._ids, self._device = source, assembly, ids, device
        self._dataset, self._tally = Batches(source, assembly), Tally(num_images, max_corrupt_share)
        self._group_size = group_size
        self._pixels: _Pixels | None = None
        self._feed: Feed | None = None  # instead, where the device has no room
        self._num_images, self._max_corrupt_share = num_images, max_corrupt_share

    @property
    def corrupt(self) -> dict[str, str]:
        """Images that could not be read so far: path or row -> reason."""
        return self._tally.corrupt if self._feed is None else self._feed.corrupt

    def __call__(self, requests: Sequence[Request], *, start: int = 0) -> Iterator[Made | None]:
        """Answer the requests from ``start`` on, in order; ``None`` where no image of a request could be read."""
        if not self._has_room():
            assert self._feed is not None  # that is what takes its place
            yield from self._feed(requests, start=start)
            return
        size = self._group_size or self._fitting(requests)
        first = start // size * size
        for at, answer in enumerate(self._answers(requests[first:], size), start=first):
            if at >= start:
                yield answer

    def _has_room(self) -> bool:
        """Make room for the set when it is first asked for."""
        if self._pixels is None and self._feed is None:
            try:
                self._pixels = _Pixels(self._source, self._ids, self._device)
            except torch.OutOfMemoryError:
                warnings.warn(
                    f"{self._device} has no room for the {len(self._ids)} images of {self._source.name}; each batch is "
                    "brought there on its own, which may be slower",
                    stacklevel=2,
                )
                self._feed = Feed(
                    self._dataset,
                    self._num_images,
                    workers=None,
                    max_corrupt_share=self._max_corrupt_share,
                    device=self._device,
                )
        return self._pixels is not None

    def _fitting(self, requests: Sequence[Request]) -> int:
        """Micro-batches in a group."""
        if self._device.type == "cpu":
            return 1  # pixels of one are as much as its cache holds
        transform = self._assembly.transform
        image = 4 * transform.num_values
        image += 8 * self._assembly.num_classes if mixes(transform.settings) else 0
        largest = max((len(samples) for _, samples in requests), default=1)
        return max(1, min(_LARGEST_GROUP, _GROUP_BYTES // (image * largest)))

    def _answers(self, requests: Sequence[Request], size: int) -> Iterator[Made | None]:
        for part in _parts(requests, size):
            drawn = self._drawn(part)
            for at in range(0, len(part), size):
                yield from self._group(part[at : at + size], drawn[at : at + size])

    def _drawn(self, requests: Sequence[Request]) -> list[NDArray[np.float64]]:
        """The draws of each request's samples."""
        samples = np.concatenate([one for _, one in requests])
        draws = self._assembly.transform.draw(samples[:, 0], requests[0][0], samples[:, 1])
        return np.split(draws, list(accumulate(len(one) for _, one in requests))[:-1])

    def _group(self, requests: Sequence[Request], drawn: Sequence[NDArray[np.float64]]) -> Iterator[Made | None]:
        """Answers to requests of one epoch; those of which everything is there are made together."""
        assert self._pixels is not None  # __call__ makes it
        whole = self._pixels.bring([samples[:, 0] for _, samples in requests])
        together = [index for index, is_whole in enumerate(whole) if is_whole]
        made = self._made([requests[index] for index in together], [drawn[index] for index in together])
        for request, is_whole in zip(requests, whole, strict=True):
            yield next(made) if is_whole else self._read(request)

    def _read(self, request: Request) -> Made | None:
        made = self._tally.open(self._dataset[request])
        return self._assembly.complete(made, self._device)

    def _made(self, requests: Sequence[Request], drawn: Sequence[NDArray[np.float64]]) -> Iterator[Batch]:
        if not requests:
            return
        assert self._pixels is not None
        epoch, sizes = requests[0][0], [len(samples) for _, samples in requests]
        samples = np.concatenate([samples for _, samples in requests])
        target = self._assembly.targets[samples[:, 0]]
        settings, mixing = self._assembly.transform.settings, None
        if mixes(settings):
            seed, everything = self._assembly.transform.seed, np.arange(len(samples))
            mixing = draw_mixing(settings, seed, epoch, samples, everything, sizes).alike(target != UNLABELLED)
        images, draws = self._pixels.pick(samples[:, 0]), np.concatenate(drawn)
        yield from _split(self._assembly.finish(Started(images, target, samples, epoch, draws, mixing)), sizes)


class _Pixels:
    """uint8 images ``(M, C, H, W)`` on the device, which come there as they are needed; on the CPU the source's own."""

    def __init__(self, source: HeldSource, ids: Ids, device: torch.device) -> None:
        self._source, self._device = source, device
        kept = source.kept()
        self._rows = np.arange(len(kept))
        self._here = np.ones(len(kept), dtype=np.bool_)
        if device.type == "cpu":
            self._images = torch.from_numpy(kept)
            return
        self._rows[ids] = np.arange(len(ids))
        self._here[ids] = False
        self._images = torch.empty((len(ids), *kept.shape[1:]), dtype=torch.uint8, device=device)

    def bring(self, ids: Sequence[Ids]) -> list[bool]:
        """Have the images of several micro-batches here; for each, whether all of them are."""
        wanted = np.unique(np.concatenate(ids))
        held = self._source.hold(wanted)
        new = wanted[held & ~self._here[wanted]]
        if len(new):
            self._images[placed(self._rows[new], self._device)] = placed(self._source.kept()[new], self._device)
            self._here[new] = True
        odd = wanted[~held]
        return [not np.isin(one, odd).any() for one in ids] if len(odd) else [True] * len(ids)

    def pick(self, ids: Ids) -> Tensor:
        """Copies of these images ``(B, C, H, W)``."""
        return self._images.index_select(0, placed(self._rows[ids], self._device))


def _parts(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Runs of whole groups, of one epoch each, for which draws are made at once; a new epoch begins a new group."""
    at = 0
    while at < len(requests):
        epoch, end, num_samples = requests[at][0], at, 0
        while end < len(requests) and requests[end][0] == epoch and num_samples < _DRAWN_TOGETHER:
            group = [samples for other, samples in requests[end : end + size] if other == epoch]
            num_samples += sum(map(len, group))
            end += len(group)
        yield requests[at:end]
        at = end


def _split(batch: Batch, sizes: Sequence[int]) -> Iterator[Batch]:
    """The micro-batches of a batch, whose views go on sharing tensors."""
    if len(sizes) == 1:
        yield batch
        return
    ends = list(accumulate(sizes))
    for start, end in zip([0, *ends], ends, strict=False):
        parts = {id(view): view[start:end] for view in batch.images.values()}
        yield replace(
            batch,
            images={name: parts[id(view)] for name, view in batch.images.items()},
            target=batch.target[start:end],
            sample_id=batch.sample_id[start:end],
            samples=None if batch.samples is None else batch.samples[start:end],
        )
