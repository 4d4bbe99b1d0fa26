"""Who has which image: seeded ways to deal out a labelled set among clients, each a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import InputError

Ids = NDArray[np.int64]


class Draw(IntEnum):
    """What random numbers are for; different uses of one seed never share a stream."""

    TRANSFER = 0
    SHARES = 1
    IMAGES = 2
    SHARDS = 3
    PRIVATE = 4
    TEST = 5


def generator(seed: int, purpose: Draw, number: int = 0) -> np.random.Generator:
    """Random numbers of one purpose, counter-based, for the client or part of that number."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(purpose), number])))


def take_transfer(num_images: int, *, share: float, limit: int | None, seed: int) -> tuple[Ids, Ids]:
    """Ids of the transfer set and of the images that are left, both sorted; labels have no say."""
    order = generator(seed, Draw.TRANSFER).permutation(num_images)
    count = max(1, round(share * num_images))
    chosen = np.sort(order[: count if limit is None else min(count, limit)])
    return chosen, np.setdiff1d(np.arange(num_images), chosen)


def dirichlet(targets: Ids, ids: Ids, *, num_clients: int, alpha: float, samples: int | None, seed: int) -> list[Ids]:
    """Parts of equal size whose class shares are drawn from a symmetric Dirichlet distribution.

    Every client wants ``samples`` images by its own shares. Where all together want more of a class than there is, each
    gets its part of what there is, and takes other images instead: first of the classes that it wanted as well.
    (The sampler that deals every class by itself ties the size of a part to its labels; ours keeps them apart.)

    Args:
        targets: class of every image of the source ``(N,)``.
        ids: the images to deal out.
        alpha: concentration; 100 is nearly the same mix for all, 0.1 one class or two.
        samples: images of a client; default all images, in equal parts.

    Raises:
        InputError: fewer images than are asked for.

    Source: Hsu, Qi, Brown 2019, arXiv 1909.06335, for the distribution of class shares.
    """
    size = len(ids) // num_clients if samples is None else samples
    if size < 1 or size * num_clients > len(ids):
        raise InputError(
            f"{num_clients} clients of {max(size, 1)} images each, from {len(ids)} images",
            f"at most {len(ids)} images together, one or more a client",
            "lower --clients or partition.samples, or transfer.share",
        )
    classes = np.unique(targets[ids])
    shares = generator(seed, Draw.SHARES).dirichlet(np.full(len(classes), alpha), size=num_clients)
    supply = np.array([(targets[ids] == one).sum() for one in classes])
    counts = _settle(shares, supply, size)
    pools = [generator(seed, Draw.IMAGES, int(one)).permutation(ids[targets[ids] == one]) for one in classes]
    ends = np.cumsum(counts, axis=0)
    starts = ends - counts
    return [
        np.sort(np.concatenate([pool[starts[n, c] : ends[n, c]] for c, pool in enumerate(pools)]))
        for n in range(num_clients)
    ]


def _settle(shares: NDArray[np.float64], supply: Ids, size: int) -> Ids:
    """Whole numbers of images ``(N, C)``: rows add up to ``size``, columns to at most the supply.

    Wishes are cut down to what there is and filled up again, in turns, until all are served.
    """
    num_clients, num_classes = shares.shape
    counts = np.zeros((num_clients, num_classes), dtype=np.int64)
    wishes = shares + 1e-9  # whoever's classes run out takes any other
    while (lacking := size - counts.sum(axis=1)).any():
        left = supply - counts.sum(axis=0)
        open_wishes = wishes * (left > 0)
        asked = _rounded(lacking[:, None] * open_wishes / open_wishes.sum(axis=1, keepdims=True), lacking)
        over = asked.sum(axis=0)
        scale = np.where(over > left, left / np.maximum(over, 1), 1.0)
        granted = np.floor(asked * scale).astype(np.int64)
        if not granted.any():  # only fractions are left: one image to whoever asks first
            client, one = np.argwhere(asked > 0)[0]
            granted[client, one] = 1
        counts += granted
    return counts


def _rounded(exact: NDArray[np.float64], totals: Ids) -> Ids:
    """Rows of whole numbers by largest remainder, which add up to ``totals``."""
    whole = np.floor(exact).astype(np.int64)
    for row, lacking in enumerate(totals - whole.sum(axis=1)):
        most = np.argsort(-(exact[row] - whole[row]), kind="stable")[: max(int(lacking), 0)]
        whole[row, most] += 1
    return whole


def shards(targets: Ids, ids: Ids, *, num_clients: int, per_client: int, seed: int) -> list[Ids]:
    """Images sorted by class, cut into equal shards, and ``per_client`` of these dealt to each client.

    Source: McMahan et al. 2017, arXiv 1602.05629, section 3.
    """
    num_shards = num_clients * per_client
    if num_shards > len(ids):
        raise InputError(
            f"{num_clients} clients with {per_client} shards each, from {len(ids)} images",
            "an image a shard at least",
            "lower --clients or partition.shards",
        )
    cut = np.array_split(ids[np.argsort(targets[ids], kind="stable")], num_shards)
    dealt = generator(seed, Draw.SHARDS).permutation(num_shards).reshape(num_clients, per_client)
    return [np.sort(np.concatenate([cut[one] for one in mine])) for mine in dealt]


def by_group(groups: Sequence[object], ids: Ids) -> dict[str, Ids]:
    """Images by the value of a column, such as the hospital that they are of; names in order."""
    named = np.array([str(one) for one in groups])
    return {str(name): ids[named[ids] == name] for name in np.unique(named[ids])}


def hold_private(targets: Ids, ids: Ids, *, share: float, seed: int, number: int, purpose: Draw) -> tuple[Ids, Ids]:
    """(kept, held out) of a client's images, both sorted, the latter spread evenly over its classes.

    One image is never held out of one, and at least one of two or more; a class may have none among a few.
    """
    shuffled = generator(seed, purpose, number).permutation(ids)
    by_class = shuffled[np.argsort(targets[shuffled], kind="stable")]
    count = min(len(ids) - 1, max(1, round(share * len(ids)))) if len(ids) > 1 else 0
    places = np.floor((np.arange(count) + 0.5) * len(ids) / max(count, 1)).astype(int)
    held = by_class[places]
    return np.setdiff1d(ids, held), np.sort(held)


def histogram(targets: Ids, ids: Ids, num_classes: int) -> Ids:
    """Images of each class ``(C,)``."""
    return np.bincount(targets[ids], minlength=num_classes)
