"""Reading a store: the answers to any samples of an epoch, looked up and picked by whole batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.errors import InputError
from crossdistill.store import manifest as manifests
from crossdistill.store.codec import Answers, empty
from crossdistill.store.compare import differences, shown
from crossdistill.store.manifest import LARGEST_OCCURRENCE, Manifest
from crossdistill.store.shard import (
    KEYS,
    DamagedShard,
    Shard,
    check_header,
    epoch_path,
    epochs,
    open_shard,
    sample_keys,
)

MOST_SHARDS = 1024
"""Shards that stay mapped: no open file, but an entry each in the system's table of mappings, which has 65,530.

A pass in the stored order would do with one; a subset of the images, or another order, picks from all of an epoch.
"""

MOST_EPOCHS = 2
"""Epochs whose table of samples stays in memory, 16 bytes a sample."""


class Store:
    """Stored answers of a teacher; any number of threads and processes may read at once.

    Attributes:
        path: the store's folder.
        manifest: whose answers these are.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        # Neither cache holds a lock while a shard is opened, so a process may fork at any moment.
        self._shard = lru_cache(MOST_SHARDS)(partial(_checked_shard, path, manifest, {}))
        self._table = lru_cache(MOST_EPOCHS)(partial(_make_table, path, manifest))

    @classmethod
    def open(cls, path: Path) -> Self:
        """The store at ``path``.

        Raises:
            InputError: there is none, or its manifest is damaged or of a newer version.
        """
        return cls(path, manifests.load(path))

    def __reduce__(self) -> tuple[type[Self], tuple[Path, Manifest]]:
        return type(self), (self.path, self.manifest)  # other processes map the files themselves

    def num_epochs(self) -> int:
        """Whole epochs, from the first on."""
        count = 0
        for epoch in epochs(self.path):
            if epoch != count or next(_problems(self.path, self.manifest, epoch), None) is not None:
                break
            count += 1
        return count

    def check_complete(self, num_epochs: int) -> None:
        """Refuse a store that does not hold the first ``num_epochs`` whole.

        Raises:
            InputError: naming the shards that are missing, cut short or of another store.
        """
        problems = [one for epoch in range(num_epochs) for one in _problems(self.path, self.manifest, epoch)]
        if problems:
            whole = self.num_epochs()
            raise InputError(
                f"{num_epochs} epochs from store {self.path}, which holds {whole} whole ({shown(problems)})",
                f"{num_epochs} whole epochs" + (f", or at most {whole} asked for" if whole else ""),
                f"give the command that made the store again with --epochs {num_epochs}: it writes what is missing"
                + (f"; or see the same {whole} again and again with data.cycle_epochs={whole}" if whole else ""),
            )

    def check_same(self, given: Mapping[str, Any]) -> None:
        """Compare sections of the manifest's identity; those that are not given are not compared.

        Raises:
            InputError: naming each key that differs, with the value stored and the one given.
        """
        identity = self.manifest.identity
        changed = differences({section: identity[section] for section in given if section in identity}, given)
        if changed:
            raise InputError(
                f"store {self.path}, which was made otherwise ({shown(changed)})",
                "the settings that the store was made with",
                "give the stored ones, or store the teacher's answers anew in another folder",
            )

    def ids(self, epoch: int) -> NDArray[np.int64]:
        """The ids that have an answer in this epoch, sorted."""
        ids = self._table(epoch).keys >> 16
        is_first = np.ones(len(ids), dtype=bool)
        is_first[1:] = ids[1:] != ids[:-1]  # they are sorted; numpy's unique hashes, which is slower
        return ids[is_first]

    def read(self, epoch: int, samples: Tensor) -> Answers:
        """The rows of these samples, on the host, in their order.

        Args:
            samples: ``(B, 2)`` int64 on the host, ids and occurrences.

        Raises:
            InputError: a sample without an answer, or a damaged shard.
        """
        table = self._table(epoch)
        shards, rows = table.find(samples.numpy(), f"epoch {epoch} of store {self.path}")
        answers = empty(self.manifest, len(samples))
        for number in np.unique(shards).tolist():
            shard = self._shard(epoch, number)
            if shard.key_hashes != table.hashes[number]:
                raise _refused(self.path, epoch, number, "it was written again since the store was opened")
            at = np.flatnonzero(shards == number)
            for name, answer in answers.items():
                _pick(shard.arrays[name], rows[at], answer.numpy(), at)
        return Answers(answers, self.manifest.num_classes)

    def fingerprint(self) -> str:
        """A hash that names whose answers these are and how they are kept; more epochs do not change it."""
        return self.manifest.fingerprint()


@dataclass(frozen=True, slots=True)
class _Table:
    """Where the answers of one epoch lie: keys ``(N,)`` sorted, shard and row of each; and what shards they were."""

    keys: NDArray[np.int64]
    shards: NDArray[np.int32]
    rows: NDArray[np.int32]
    hashes: tuple[tuple[str, ...], ...]

    def find(self, samples: NDArray[np.int64], where: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Shard and row of these samples ``(B, 2)``."""
        wanted = sample_keys(samples[:, 0], samples[:, 1])
        at = np.searchsorted(self.keys, wanted)
        found = (samples[:, 1] >= 0) & (samples[:, 1] <= LARGEST_OCCURRENCE)  # others would be taken for another id's
        inside = at < len(self.keys)
        found[inside] &= self.keys[at[inside]] == wanted[inside]
        found &= inside
        if not found.all():
            lacking = samples[~found]
            raise InputError(
                f"{len(lacking):,} of {len(samples):,} samples that have no answer in {where}, for example id "
                f"{lacking[0, 0]}, occurrence {lacking[0, 1]}",
                "samples that the teacher has answered",
                "use the images, order and seed that the store was made with",
            )
        return self.shards[at], self.rows[at]


def _make_table(path: Path, manifest: Manifest, epoch: int) -> _Table:
    keys, hashes = [], []
    if not epoch_path(path, epoch).exists():
        raise InputError(
            f"epoch {epoch} of store {path}, which has no such epoch",
            f"an epoch that is stored: {', '.join(map(str, epochs(path)[:20])) or 'there is none yet'}",
            "store more epochs, or see the same ones again with data.cycle_epochs",
        )
    for number in range(manifest.num_shards):
        try:
            shard = open_shard(path, manifest, epoch, number)
            shard.check(KEYS)
        except DamagedShard as error:
            raise _refused(path, epoch, number, error) from error
        keys.append(shard.keys())
        hashes.append(shard.key_hashes)
    joined, sizes = np.concatenate(keys), [len(one) for one in keys]
    order = np.argsort(joined, kind="stable")
    shards = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    rows = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    return _Table(joined[order], shards[order], rows[order], tuple(hashes))


def _checked_shard(
    path: Path, manifest: Manifest, sound: dict[Path, tuple[int, int, int]], epoch: int, number: int
) -> Shard:
    """Map a shard and check its hashes, unless they were checked and the file is still the same."""
    try:
        shard = open_shard(path, manifest, epoch, number)
        stat = os.stat(shard.path)
        mark = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if sound.get(shard.path) != mark:
            shard.check(shard.arrays)
            sound[shard.path] = mark
    except (DamagedShard, OSError) as error:
        raise _refused(path, epoch, number, error) from error
    return shard


def _pick(stored: NDArray[Any], rows: NDArray[np.int32], out: NDArray[Any], at: NDArray[np.int64]) -> None:
    """``out[at] = stored[rows]``."""
    if len(at) == len(out):  # the usual batch lies in one shard: no copy between
        np.take(stored, rows, axis=0, out=out, mode="clip")  # the table says that no row is outside
    else:
        out[at] = stored[rows]


def _problems(path: Path, manifest: Manifest, epoch: int) -> Iterator[str]:
    """A phrase for each shard of this epoch that is missing, cut short or another one."""
    if not epoch_path(path, epoch).exists():
        yield f"epoch {epoch}: nothing"
        return
    for shard in range(manifest.num_shards):
        try:
            check_header(path, manifest, epoch, shard)
        except DamagedShard as error:
            yield f"epoch {epoch} shard {shard}: {error}"


def _refused(path: Path, epoch: int, number: int, reason: object) -> InputError:
    return InputError(
        f"store {path}, whose shard {number} of epoch {epoch} cannot be used: {reason}",
        "the shard as it was written",
        f"list all such shards with `crossdistill store --verify {path}`, remove them, and give the command that made "
        "the store again: it writes what is missing",
    )
