"""Decoded images kept in memory: small sets of one image size are decoded once, as they are needed."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from crossdistill.data.source import CorruptImage, Source

Images = Tensor | list[Tensor]
"""uint8 images: ``(B, C, H, W)`` where all have one shape, else a list of ``(C, H, W)``."""

_LIMIT_BYTES = 512 * 2**20

_MISSING, _HELD, _EXCEPTION = range(3)


@dataclass(frozen=True, slots=True)
class Reading:
    """The images that could be read, their positions among those asked for, and what could not be read."""

    images: Images
    positions: NDArray[np.int64]
    corrupt: tuple[CorruptImage, ...] = ()

    @classmethod
    def of(cls, results: Sequence[Tensor | CorruptImage]) -> Reading:
        """Sort results into images and failures."""
        images = [result for result in results if isinstance(result, Tensor)]
        positions = np.array([at for at, result in enumerate(results) if isinstance(result, Tensor)], dtype=np.int64)
        same_shape = len({image.shape for image in images}) == 1
        corrupt = tuple(result for result in results if isinstance(result, CorruptImage))
        return cls(torch.stack(images) if same_shape else images, positions, corrupt)


class HeldSource:
    """A source that reads whole batches, and keeps what it decoded if the set is small and of one image size."""

    def __init__(self, source: Source, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self.source, self.limit_bytes = source, limit_bytes
        self.name, self.class_names, self.targets = source.name, source.class_names, source.targets
        self.mirror_safe = source.mirror_safe
        self._memory: Memory | None = None

    @property
    def num_channels(self) -> int | None:
        """Channels of the stored images, ``None`` if mixed."""
        return self.source.num_channels

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) if the images share it."""
        return self.source.image_size

    @cached_property
    def in_memory(self) -> bool:
        """Whether decoded images are kept."""
        return self._num_bytes is not None and self._num_bytes <= self.limit_bytes

    @property
    def held_bytes(self) -> int:
        """What all images take once they are decoded, where they are kept."""
        return (self._num_bytes or 0) if self.in_memory else 0

    @property
    def _num_bytes(self) -> int | None:
        if self.num_channels is None or self.image_size is None:
            return None
        return len(self.targets) * self.num_channels * math.prod(self.image_size)

    def read(self, index: int) -> Tensor:
        """One image, uint8 ``(C, H, W)``."""
        return self.source.read(index)

    def describe(self, index: int) -> str:
        """Where the image lies."""
        return self.source.describe(index)

    def read_batch(self, ids: NDArray[np.int64]) -> Reading:
        """Read these images; corrupt ones are left out and listed."""
        if not self.in_memory:
            return Reading.of(self._decode(ids))
        memory = self._fill(ids)
        if (memory.state[ids] == _HELD).all():
            return Reading(torch.from_numpy(memory.pixels[ids]), np.arange(len(ids)))
        return Reading.of(
            [
                torch.from_numpy(memory.pixels[index].copy()) if memory.state[index] == _HELD else self._try_read(index)
                for index in ids.tolist()
            ]
        )

    def hold(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Decode these images where that was not done before; which of them are now kept ``(B,)``."""
        return self._fill(ids).held[ids]

    def kept(self) -> NDArray[np.uint8]:
        """Room for all images ``(N, C, H, W)``, of which those count that are held; for sets held in memory only."""
        self.share()
        assert self._memory is not None  # share makes it, for such sets
        return self._memory.pixels

    def share(self) -> None:
        """Make room for the images now, so that worker processes forked later decode each of them once together."""
        if self.in_memory and self._memory is None:
            assert self.image_size is not None  # in_memory says so
            self._memory = Memory.of((len(self.targets), self.num_channels or 0, *self.image_size))

    def _fill(self, ids: NDArray[np.int64]) -> Memory:
        self.share()
        memory = self._memory
        assert memory is not None
        missing = np.unique(ids[memory.state[ids] == _MISSING])
        for index, result in zip(missing, self._decode(missing), strict=True):
            if isinstance(result, Tensor) and result.shape == memory.pixels.shape[1:]:
                memory.keep(index, result.numpy())
            else:  # corrupt images and whole ones of another size than the probed ones are read each time
                memory.give_up(index)
        return memory

    def _decode(self, ids: NDArray[np.int64]) -> list[Tensor | CorruptImage]:
        indices = [int(index) for index in ids]
        num_threads = min(len(indices), num_cores())
        if num_threads < 2 or get_worker_info() is not None:  # worker processes are the parallelism already
            return [self._try_read(index) for index in indices]
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(self._try_read, indices))

    def _try_read(self, index: int) -> Tensor | CorruptImage:
        try:
            return self.source.read(index)
        except CorruptImage as corrupt:
            return corrupt

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": None}  # decoded images do not travel to other processes


@dataclass(frozen=True, slots=True)
class Memory:
    """Room for decoded images that forked processes share: pixels ``(N, C, H, W)``, and what is known of each."""

    pixels: NDArray[np.uint8]
    state: NDArray[np.uint8]

    @property
    def held(self) -> NDArray[np.bool_]:
        """Which images are here ``(N,)``."""
        held: NDArray[np.bool_] = self.state == _HELD
        return held

    @property
    def tried(self) -> NDArray[np.bool_]:
        """Which images are here or are known not to be readable ``(N,)``."""
        tried: NDArray[np.bool_] = self.state != _MISSING
        return tried

    def give_up(self, where: Any) -> None:
        """Note that the images of these places cannot be kept."""
        self.state[where] = _EXCEPTION

    def keep(self, where: Any, pixels: NDArray[np.uint8]) -> None:
        """Write images to these places."""
        self.pixels[where] = pixels
        self.state[where] = _HELD  # after the pixels, since another process may look at any moment

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Memory:
        """Empty room; the system gives it page by page as it is written."""
        size = math.prod(shape)
        room = np.frombuffer(mmap.mmap(-1, size + shape[0]), dtype=np.uint8)
        return cls(room[:size].reshape(shape), room[size:])


def num_workers(source: HeldSource, workers: int | None, *, cheap: bool = True) -> int:
    """Worker processes for a loader: as asked for; else none for images held in memory, and up to four for others.

    Args:
        cheap: preparing a batch costs little, once its images are decoded; where it does not, workers are worth it.
    """
    if workers is not None:
        return workers
    return 0 if source.in_memory and cheap else min(4, num_cores())


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
