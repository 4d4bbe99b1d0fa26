"""Which images make up which step, on which process: a pure function of (seed, epoch).

An order is int64 ``(N, 2)``: the position of each image in turn, and how often it came before in this epoch, so that
an image that comes several times is augmented in another way each time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.philox import NUM_VIEWS, Purpose, random_order
from crossdistill.errors import InputError

Positions = NDArray[np.int64]
Order = NDArray[np.int64]


def permutation(num_samples: int, *, seed: int, epoch: int) -> Positions:
    """The order of the samples in this epoch ``(N,)``; neighbours 2j and 2j + 1 of a step are mixing partners."""
    return random_order(num_samples, seed=seed, epoch=epoch, purpose=Purpose.PERMUTATION)


def shuffled(num_samples: int, *, seed: int, epoch: int) -> Order:
    """Every sample once, in the order of :func:`permutation`."""
    order = permutation(num_samples, seed=seed, epoch=epoch)
    return np.stack([order, np.zeros_like(order)], axis=1)


def class_balanced(classes: NDArray[np.int64], *, seed: int, epoch: int) -> Order:
    """As many samples as there are, of every class equally many (up to one): images of rare classes come again.

    Of a class with more images than its share, each epoch shows others.

    Args:
        classes: class of each sample ``(N,)``; -1 is a class like others.
    """
    present, target = np.unique(classes, return_inverse=True)
    mixed = random_order(len(classes), seed=seed, epoch=epoch, purpose=Purpose.BALANCE)
    members = [mixed[target[mixed] == one] for one in range(len(present))]
    rank, one = np.divmod(np.arange(len(classes)), len(present))
    sizes = np.array([len(own) for own in members])
    occurrence, place = np.divmod(rank, sizes[one])
    occurrence %= NUM_VIEWS  # an image that comes more often than that is changed as before
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    positions = np.concatenate(members)[starts[one] + place]
    order = np.stack([positions, occurrence], axis=1)
    return order[permutation(len(classes), seed=seed, epoch=epoch)]


def most_often(classes: NDArray[np.int64]) -> int:
    """How often :func:`class_balanced` shows the image that comes most often in an epoch."""
    sizes = np.unique(classes, return_counts=True)[1]
    shares = -(-(len(classes) - np.arange(len(sizes))) // len(sizes))
    return int((-(-shares // sizes)).max(initial=1))


def num_steps(num_samples: int, batch_size: int, *, drop_last: bool = True) -> int:
    """Steps of an epoch; a set smaller than the batch makes one step of all it has."""
    if num_samples <= batch_size:
        return 1
    return num_samples // batch_size if drop_last else -(-num_samples // batch_size)


def batches(
    order: Order,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    device_batch_size: int | None = None,
    drop_last: bool = True,
) -> list[list[Order]]:
    """This process's micro-batches of every step of the epoch: parts ``(B, 2)`` of the order.

    Step k of all processes together is the k-th run of ``batch_size`` samples of the order, whatever the
    number of processes and the size of micro-batches. Pairs of neighbours stay in one micro-batch, so shares and
    micro-batches differ by one pair where the batch does not divide evenly. A single last sample joins the
    micro-batch before it, which may then be one larger than ``device_batch_size``.

    Raises:
        InputError: the batch does not divide over the processes, or a device cannot take one pair.
    """
    check_sizes(len(order), batch_size, world_size, device_batch_size)
    steps = []
    for step in range(num_steps(len(order), batch_size, drop_last=drop_last)):
        whole = order[step * batch_size : (step + 1) * batch_size]
        share = _split_pairs(whole, world_size)[rank]
        steps.append(_join_single(_split_pairs(share, _num_micro_batches(len(share), device_batch_size))))
    return steps


def check_sizes(num_samples: int, batch_size: int, world_size: int, device_batch_size: int | None) -> None:
    """Refuse sizes that cannot be shared out; see :func:`batches`."""
    if world_size > 1 and batch_size % (2 * world_size):
        nearest = max(1, round(batch_size / (2 * world_size))) * 2 * world_size
        raise InputError(
            f"train.batch_size={batch_size} over {world_size} processes",
            f"a multiple of {2 * world_size} (whole pairs of images for every process)",
            f"set train.batch_size={nearest}",
        )
    if num_samples < (2 * world_size if world_size > 1 else 1):
        raise InputError(
            f"{num_samples} training images for {world_size} process(es)",
            "at least one image, and two a process with several processes",
            "give more images or start fewer processes",
        )
    if device_batch_size is not None and device_batch_size < min(2, batch_size):
        raise InputError(
            f"train.device_batch_size={device_batch_size}",
            "at least 2, since mixing partners stay together",
            "set train.device_batch_size=2 and choose a smaller model or image size if memory is short",
        )


def _num_micro_batches(num_samples: int, device_batch_size: int | None) -> int:
    if device_batch_size is None or num_samples <= device_batch_size:
        return 1 if num_samples else 0
    num_pairs, pairs_at_once = (num_samples + 1) // 2, device_batch_size // 2
    return -(-num_pairs // pairs_at_once)


def _split_pairs(samples: Order, num_parts: int) -> list[Order]:
    """Contiguous parts of whole pairs, as equal as can be."""
    if num_parts == 0:
        return []
    num_pairs = (len(samples) + 1) // 2
    ends = [2 * (num_pairs * part // num_parts) for part in range(1, num_parts)]
    return np.split(samples, ends)


def _join_single(parts: list[Order]) -> list[Order]:
    if len(parts) < 2 or len(parts[-1]) > 1:
        return parts
    # Batch normalisation of a single sample fails in training where its map has shrunk to one pixel.
    return [*parts[:-2], np.concatenate(parts[-2:])]
