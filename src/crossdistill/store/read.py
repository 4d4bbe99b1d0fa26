"""Reading a store: the answers to any samples of an epoch, looked up and picked by whole batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.differences import differences, shown
from crossdistill.errors import InputError
from crossdistill.store import manifest as manifests
from crossdistill.store.codec import Answers, empty
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

T = TypeVar("T")

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

    def fact(self, what: str, of: Callable[[Manifest], T]) -> T:
        """Something that the manifest should say of identity or facts, which whoever wrote the store was free to fill.

        Args:
            what: names it.
            of: takes it from the manifest.

        Raises:
            InputError: the manifest does not say it.
        """
        try:
            return of(self.manifest)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"store {self.path}, whose manifest does not describe {what} ({type(error).__name__}: {error})",
                "a store that `crossdistill store` made",
                "store the teacher's answers again",
            ) from error

    def num_epochs(self, first: int = 0) -> int:
        """Whole epochs, from the first on; ``first`` of them are known to be whole and not looked at."""
        return first + len(self._whole(range(first, len(epochs(self.path)))))

    def rows(self, num_epochs: int) -> list[list[int]]:
        """How many answers each shard holds, by epoch, of the whole epochs among the first ``num_epochs``.

        Fewer than it has positions where images could not be read. Each header is looked at once, and nothing after
        the first epoch that is not whole.
        """
        return self._whole(range(num_epochs))

    def _whole(self, wanted: range) -> list[list[int]]:
        """The numbers of answers of these epochs, up to the first that is not whole."""
        whole: list[list[int]] = []
        for epoch in wanted:
            rows, problems = _survey(self.path, self.manifest, epoch)
            if problems:
                break
            whole.append(rows)
        return whole

    def check_complete(self, num_epochs: int) -> None:
        """Refuse a store that does not hold the first ``num_epochs`` whole.

        Raises:
            InputError: naming the shards that are missing, cut short or of another store.
        """
        found = [_survey(self.path, self.manifest, epoch)[1] for epoch in range(num_epochs)]
        problems = [problem for each in found for problem in each]
        if problems:
            whole = next(epoch for epoch, each in enumerate(found) if each)
            raise InputError(
                f"{num_epochs} epochs from store {self.path}, which holds {whole} whole ({shown(problems)})",
                f"{num_epochs} whole epochs" + (f", or at most {whole} asked for" if whole else ""),
                f"give again {self.manifest.made_by(num_epochs)}: it writes what is missing"
                + (f"; or see the same {whole} again and again with data.cycle_epochs={whole}" if whole else ""),
            )

    def check_same(self, given: Mapping[str, Any], words: Mapping[str, tuple[str, str]] | None = None) -> None:
        """Compare sections of the manifest's identity; those that are not given are not compared.

        Args:
            words: what differs and what to do, for keys whose values say nothing to a reader.

        Raises:
            InputError: naming each key that differs, with the value stored and the one given.
        """
        identity = self.manifest.identity
        stored = {section: identity[section] for section in given if section in identity}
        changed = differences(stored, given, was="stored")
        if changed:
            words = {key: words[key] for key in changed if key in words} if words else {}
            phrases = [words[key][0] if key in words else phrase for key, phrase in changed.items()]
            general = "give the stored ones, or store the teacher's answers anew in another folder"
            actions = [action for _, action in words.values()] + ([general] if len(words) < len(changed) else [])
            raise InputError(
                f"store {self.path}, which was made otherwise ({shown(phrases)})",
                "the settings that the store was made with",
                "; ".join(actions),
            )

    def ids(self, epoch: int) -> NDArray[np.int64]:
        """The ids that have an answer in this epoch, sorted."""
        ids = self._table(epoch).keys >> 16
        is_first = np.ones(len(ids), dtype=bool)
        is_first[1:] = ids[1:] != ids[:-1]  # they are sorted; numpy's unique hashes, which is slower
        return ids[is_first]

    def read(self, epoch: int, samples: Tensor, *, embeddings: bool = True) -> Answers:
        """The rows of these samples, on the host, in their order.

        Args:
            samples: ``(B, 2)`` int64 on the host, ids and occurrences.
            embeddings: whether those are wanted too, where they are kept; if not, nothing of them is read.

        Raises:
            InputError: a sample without an answer, or a damaged shard.
        """
        table = self._table(epoch)
        shards, rows = table.find(samples.numpy(), f"epoch {epoch} of store {self.path}")
        answers = empty(self.manifest, len(samples), embeddings=embeddings)
        names = (*KEYS, *answers)
        for number in np.unique(shards).tolist():
            shard = self._shard(epoch, number, names)
            if shard.key_hashes != table.hashes[number]:
                raise _refused(
                    self.path, self.manifest, epoch, number, "it was written again since the store was opened"
                )
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
            raise _refused(path, manifest, epoch, number, error) from error
        keys.append(shard.keys())
        hashes.append(shard.key_hashes)
    joined, sizes = np.concatenate(keys), [len(one) for one in keys]
    order = np.argsort(joined, kind="stable")
    shards = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    rows = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    return _Table(joined[order], shards[order], rows[order], tuple(hashes))


def _checked_shard(
    path: Path,
    manifest: Manifest,
    sound: dict[tuple[Path, tuple[str, ...]], tuple[int, int, int]],
    epoch: int,
    number: int,
    names: tuple[str, ...],
) -> Shard:
    """Map a shard and check these tensors' hashes, unless they were checked and the file is still the same."""
    try:
        shard = open_shard(path, manifest, epoch, number)
        stat = os.stat(shard.path)
        mark = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if sound.get((shard.path, names)) != mark:
            shard.check(names)
            sound[shard.path, names] = mark
    except (DamagedShard, OSError) as error:
        raise _refused(path, manifest, epoch, number, error) from error
    return shard


def _pick(stored: NDArray[Any], rows: NDArray[np.int32], out: NDArray[Any], at: NDArray[np.int64]) -> None:
    """``out[at] = stored[rows]``."""
    if len(at) == len(out):  # the usual batch lies in one shard: no copy between
        np.take(stored, rows, axis=0, out=out, mode="clip")  # the table says that no row is outside
    else:
        out[at] = stored[rows]


def _survey(path: Path, manifest: Manifest, epoch: int) -> tuple[list[int], list[str]]:
    """How many answers each sound shard of this epoch holds, and a phrase for each one that is missing, cut short or
    another one."""
    if not epoch_path(path, epoch).exists():
        return [], [f"epoch {epoch}: nothing"]
    rows, problems = [], []
    for shard in range(manifest.num_shards):
        try:
            rows.append(check_header(path, manifest, epoch, shard))
        except DamagedShard as error:
            problems.append(f"epoch {epoch} shard {shard}: {error}")
    return rows, problems


def _refused(path: Path, manifest: Manifest, epoch: int, number: int, reason: object) -> InputError:
    return InputError(
        f"store {path}, whose shard {number} of epoch {epoch} cannot be used: {reason}",
        "the shard as it was written",
        f"`crossdistill store --verify {path} --remove-damaged`, then {manifest.made_by(max(epochs(path)) + 1)}, which "
        "writes what is missing, then this command with --resume",
    )
