"""The order in which a stream is read: each loader process reads whole shards of its own, and shuffles in a buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, count
from typing import TypeVar

import numpy as np
from torch.utils.data import get_worker_info

from crossdistill.data.philox import Purpose, random_order, uniform
from crossdistill.errors import InputError

T = TypeVar("T")

BUFFER_SIZE = 1000
"""Samples among which the next one is drawn; they are held as encoded files."""

_DRAWS_AT_ONCE = 1024
_LANE_SHIFT = 40


def shard_order(shards: Sequence[str], *, seed: int, epoch: int) -> list[str]:
    """The shards in the order of this epoch; process r of R has every R-th, from the r-th on."""
    return [shards[index] for index in random_order(len(shards), seed=seed, epoch=epoch, purpose=Purpose.SHARDS)]


def own_lane() -> tuple[int, int]:
    """Which of the process's lanes this is, and of how many: one for each worker, or one without workers."""
    worker = get_worker_info()
    return (0, 1) if worker is None else (worker.id, worker.num_workers)


def endless(
    shards: Sequence[str],
    fetch: Callable[[str], Iterable[T]],
    *,
    first: int,
    draws: Iterator[float],
    buffer_size: int = BUFFER_SIZE,
) -> Iterator[tuple[int, T]]:
    """Samples of these shards without end, each with the number of the pass over the shards that it belongs to.

    Within a pass, every sample comes once. The first pass begins with shard ``first``.

    Raises:
        InputError: shards without any sample.
    """
    for number in count():
        samples = chain.from_iterable(map(fetch, shards[first:]))
        is_empty = True
        for sample in shuffled(samples, draws, buffer_size):
            is_empty = False
            yield number, sample
        if is_empty and first == 0:
            raise InputError(
                f"shards {', '.join(shards[:3])}{' …' if len(shards) > 3 else ''}, which hold no sample",
                "members such as 0001.jpg and 0001.cls",
                "check what was written into them",
            )
        first = 0


def shuffled(samples: Iterable[T], draws: Iterator[float], buffer_size: int) -> Iterator[T]:
    """Every sample once, each drawn from a buffer of those that came last and were not drawn yet."""
    buffer: list[T] = []
    for sample in samples:
        if len(buffer) < buffer_size:
            buffer.append(sample)
            continue
        at = int(next(draws) * buffer_size)
        yield buffer[at]
        buffer[at] = sample
    while buffer:
        at = int(next(draws) * len(buffer))
        buffer[at], buffer[-1] = buffer[-1], buffer[at]
        yield buffer.pop()


def lane_draws(seed: int, epoch: int, lane: int) -> Iterator[float]:
    """Uniform draws from [0, 1) without end: a pure function of seed, epoch and lane, counted over all processes."""
    for block in count():
        places = np.arange(block * _DRAWS_AT_ONCE, (block + 1) * _DRAWS_AT_ONCE, dtype=np.int64)
        yield from uniform(seed, epoch, places + (lane << _LANE_SHIFT), 0, 1, purpose=Purpose.BUFFER)[:, 0].tolist()
