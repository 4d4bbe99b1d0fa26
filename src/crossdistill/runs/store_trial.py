"""Whether who is to go on with a store is who began it: asked about some images that are stored, and compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crossdistill.errors import InputError
from crossdistill.runs.store_pass import Order, StorePass
from crossdistill.store import Answers, Store
from crossdistill.store.codec import LARGEST
from crossdistill.store.shard import DamagedShard, Shard, check_header, epochs, open_shard, sample_keys

Rows = tuple[Tensor, Tensor, Sequence[Tensor]]
"""Samples ``(n, 2)``, logits ``(n, K)``, embeddings ``(n, D)`` of each teacher."""

_UNITS = 16
_ROUNDING = {"fp32": 2**-11, "fp16": 2**-11, "bf16": 2**-8}
"""Half a unit in the last digit of what is multiplied; fp32 counts as TF32, which GPUs may use in its place."""


@dataclass(frozen=True, slots=True)
class _Difference:
    """How far numbers are from those stored, at most, and how often what is allowed that is."""

    largest: float = 0.0
    times: float = 0.0


def check_answers(asked: StorePass, store: Store, answer: Callable[[int, Order], Rows | None]) -> None:
    """Ask about the first batch of a shard that is stored whole; nothing is compared where there is none.

    Weights are compared by hash, but the same weights in other code, with other arguments or in another version of a
    library are another teacher. A number may differ by what the store's codec loses (see
    :mod:`~crossdistill.store.codec`) and by ``16 u`` of the largest number of its row: rounding of operands by ``u``,
    which is 2^-11 (2^-8 in bf16), once for each of some hundred layers, whose errors add up like random steps, and in
    other batches and kernels. A change smaller than that stays unnoticed.

    Args:
        answer: asks about samples ``(N, 2)`` of an epoch; those that can be read.

    Raises:
        InputError: with the largest difference.
    """
    found = _first_whole(store)
    if found is None:
        return
    epoch, number, shard = found
    rows = answer(epoch, asked.chunks(asked.order(epoch), store.manifest.positions(number))[0])
    if rows is None:
        return
    differing = _largest_difference(shard, store, rows, _UNITS * _ROUNDING[asked.settings.train.precision])
    if differing.times > 1:
        raise InputError(
            f"store {store.path}, whose answers were stored by another network, code or version: asked again about "
            f"images of shard {number} of epoch {epoch}, the teacher's answer is off by up to {differing.largest:.3g}, "
            f"{differing.times:.3g} times what rounding explains",
            "the teacher that the store was begun with, weights and code alike",
            "give the same network, arguments, code and libraries as then, or store anew in another folder",
        )


def _first_whole(store: Store) -> tuple[int, int, Shard] | None:
    """Epoch, number and content of the first shard that is sound and not empty."""
    for epoch in epochs(store.path):
        for number in range(store.manifest.num_shards):
            try:
                if check_header(store.path, store.manifest, epoch, number):
                    shard = open_shard(store.path, store.manifest, epoch, number)
                    shard.check(shard.arrays)
                    return epoch, number, shard
            except DamagedShard:
                continue
    return None


def _largest_difference(shard: Shard, store: Store, rows: Rows, rounding: float) -> _Difference:
    """Over the samples that were asked and are stored."""
    samples, logits, embeddings = rows
    keys, known = sample_keys(*samples.cpu().numpy().T), shard.keys()
    here = np.flatnonzero(np.isin(keys, known))
    if not len(here):
        return _Difference()
    order = np.argsort(known)
    at = order[np.searchsorted(known[order], keys[here])]
    kept = {name: torch.from_numpy(np.ascontiguousarray(array[at])) for name, array in shard.arrays.items()}
    stored, chosen = Answers(kept, store.manifest.num_classes), torch.from_numpy(here)
    pairs = [_logits(stored, kept, logits.cpu()[chosen].double(), rounding)]
    for one, live in zip(stored.embeddings(), embeddings, strict=True):
        size = live.cpu()[chosen].double()
        allowed = 2**-11 * size.abs() + 2**-25 + rounding * size.abs().amax(dim=1, keepdim=True)
        pairs.append(((one.double() - size).abs(), allowed))
    return _Difference(
        max(float(off.max()) for off, _ in pairs), max(float((off / allowed).max()) for off, allowed in pairs)
    )


def _logits(stored: Answers, kept: dict[str, Tensor], live: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """Differences of the logits that are kept, and what is allowed of each."""
    answers = stored.logits().double()
    below = (live.amax(dim=1, keepdim=True) - live).clamp(max=LARGEST)
    size, live = live.abs().amax(dim=1, keepdim=True), live.amax(dim=1, keepdim=True) - below
    lost = 2**-11 * below + 2**-25 + 2**-23 * (below + live.abs())
    off, allowed = (answers - live).abs(), lost + rounding * size.clamp(min=2**-10)
    if "classes" not in kept:
        return off, allowed
    classes = kept["classes"].long()
    return off.gather(1, classes), allowed.gather(1, classes)
