"""Looking through a whole store: every byte against its hash, every row for sense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.store import manifest as manifests
from crossdistill.store.manifest import Manifest
from crossdistill.store.shard import DamagedShard, MissingShard, Shard, epochs, open_shard


@dataclass(frozen=True, slots=True)
class Verification:
    """What a store holds.

    Attributes:
        num_epochs: whole epochs, from the first on.
        num_begun: epochs up to the last of which anything is there.
        num_shards: whole shards.
        num_rows: answers in these.
        num_bytes: bytes of their files.
        missing: (epoch, shard) that are not there, up to the last epoch that was begun.
        damaged: why a shard that is there cannot be used, by (epoch, shard).
    """

    num_epochs: int
    num_begun: int
    num_shards: int
    num_rows: int
    num_bytes: int
    missing: tuple[tuple[int, int], ...]
    damaged: Mapping[tuple[int, int], str]

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged and every epoch that was begun is whole."""
        return not self.missing and not self.damaged


def verify(path: Path, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Check every shard's hashes, samples and values.

    Args:
        progress: called after each shard with how many are done, of how many.

    Raises:
        InputError: there is no store, or its manifest is damaged or of a newer version.
    """
    manifest = manifests.load(path)
    begun = epochs(path)
    last = begun[-1] + 1 if begun else 0
    missing: list[tuple[int, int]] = []
    damaged: dict[tuple[int, int], str] = {}
    rows = sizes = 0
    for done, (epoch, number, shard) in enumerate(_each(path, manifest, last), start=1):
        if isinstance(shard, Shard):
            rows, sizes = rows + len(shard), sizes + shard.path.stat().st_size
        elif isinstance(shard, MissingShard):
            missing.append((epoch, number))
        else:
            damaged[epoch, number] = str(shard)
        if progress is not None:
            progress(done, last * manifest.num_shards)
    unusable = {epoch for epoch, _ in (*missing, *damaged)}
    num_epochs = next((epoch for epoch in range(last) if epoch in unusable), last)
    num_shards = last * manifest.num_shards - len(missing) - len(damaged)
    return Verification(num_epochs, last, num_shards, rows, sizes, tuple(missing), damaged)


def _each(path: Path, manifest: Manifest, num_epochs: int) -> Iterator[tuple[int, int, Shard | DamagedShard]]:
    """Every shard, or what is wrong with it."""
    for epoch in range(num_epochs):
        seen = np.zeros(0, dtype=np.int64)
        for number in range(manifest.num_shards):
            try:
                shard = open_shard(path, manifest, epoch, number)
                seen = _check(shard, manifest, seen)
            except DamagedShard as error:
                yield epoch, number, error
            else:
                yield epoch, number, shard


def _check(shard: Shard, manifest: Manifest, seen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Check one shard, and give the keys of the samples seen in its epoch so far."""
    shard.check(shard.arrays)
    for name, array in shard.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DamagedShard(f"its {name} has values that are not finite")
    if "classes" in shard.arrays:
        _check_classes(shard.arrays["classes"], manifest.num_classes)
    keys = np.sort(shard.keys())
    at = np.searchsorted(seen, keys)
    num_again = int((np.append(seen, -1)[at] == keys).sum() + (np.diff(keys) == 0).sum())
    if num_again:
        raise DamagedShard(f"{num_again} of its samples came before in this epoch")
    return np.insert(seen, at, keys)


def _check_classes(classes: NDArray[np.unsignedinteger | np.int32], num_classes: int) -> None:
    ordered = np.sort(classes.astype(np.int64), axis=1)
    if (np.diff(ordered, axis=1) == 0).any() or (ordered[:, -1:] >= num_classes).any() or (ordered[:, :1] < 0).any():
        raise DamagedShard(f"its rows do not name different classes out of {num_classes}")
