"""One file of a store: the answers to a run of positions of one epoch, written whole or not at all, read mapped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.store.manifest import Manifest
from crossdistill.store.partial import put

KEYS = ("id", "occurrence")
"""The tensors that say whose answers these are."""

_DTYPES = {"U8": "uint8", "U16": "uint16", "U32": "uint32", "I32": "int32", "F16": "float16", "F32": "float32"}


class DamagedShard(Exception):
    """A shard that is missing, cut short, altered, or not the one its name says."""


class MissingShard(DamagedShard):
    """A shard that is not there."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A mapped shard: its tensors by name ``(N, …)``, and the hash that each should have.

    Pages are read as they are looked at and shared between processes; no file stays open.
    """

    path: Path
    arrays: Mapping[str, NDArray[Any]]
    hashes: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.arrays["id"])

    @property
    def key_hashes(self) -> tuple[str, ...]:
        """The hashes of ids and occurrences: which samples lie where."""
        return tuple(self.hashes[name] for name in KEYS)

    def keys(self) -> NDArray[np.int64]:
        """One number a sample ``(N,)``, see :func:`sample_keys`."""
        return sample_keys(self.arrays["id"], self.arrays["occurrence"])

    def check(self, names: Iterable[str]) -> None:
        """Compare tensors with their hashes.

        Raises:
            DamagedShard: one is not what was written.
        """
        for name in names:
            if _sha256(self.arrays[name]) != self.hashes[name]:
                raise DamagedShard(f"its {name} is not what was written")


def sample_keys(ids: NDArray[Any], occurrences: NDArray[Any]) -> NDArray[np.int64]:
    """Ids and occurrences as one number each, in their order.

    >>> sample_keys(np.array([0, 1]), np.array([2, 0])).tolist()
    [2, 65536]
    """
    return (ids.astype(np.int64) << 16) | occurrences.astype(np.int64)


def shard_path(store: Path, epoch: int, shard: int) -> Path:
    """Where a shard lies."""
    return epoch_path(store, epoch) / f"shard-{shard:05d}.safetensors"


def epoch_path(store: Path, epoch: int) -> Path:
    """Where the shards of an epoch lie."""
    return store / f"epoch-{epoch:04d}"


def epochs(store: Path) -> list[int]:
    """The epochs that have a folder, in order."""
    matches = (re.fullmatch(r"epoch-(\d{4,})", path.name) for path in store.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def write_shard(store: Path, manifest: Manifest, epoch: int, shard: int, rows: Mapping[str, Tensor]) -> None:
    """Write the tensors of a shard (on the host, contiguous); a reader sees all of the file or none of it.

    Raises:
        OSError: the disk is full or may not be written; nothing of it stays.
    """
    hashes = json.dumps({name: _sha256(row.numpy()) for name, row in rows.items()})
    content = safetensors.torch.save(dict(rows), metadata=_labels(manifest, epoch, shard) | {"hashes": hashes})
    put(shard_path(store, epoch, shard), content)


def open_shard(store: Path, manifest: Manifest, epoch: int, shard: int) -> Shard:
    """Map a shard, after checking as :func:`check_header` does; hashes are left to :meth:`Shard.check`.

    Raises:
        DamagedShard: likewise.
    """
    path = shard_path(store, epoch, shard)
    with _opened(path) as file:
        hashes = _check(file, manifest, epoch, shard)
        return Shard(path, {name: file.get_tensor(name).numpy() for name in manifest.layout()}, hashes)


def check_header(store: Path, manifest: Manifest, epoch: int, shard: int) -> int:
    """Check that a shard is as long as its header says (reading past the end of a mapped file would end the process),
    is the one that its name says, and holds what the manifest says; how many answers these are.

    Raises:
        DamagedShard: it is missing, cut short, or another one.
    """
    with _opened(shard_path(store, epoch, shard)) as file:
        _check(file, manifest, epoch, shard)
        (num_rows,) = file.get_slice("id").get_shape()
        return int(num_rows)


def _labels(manifest: Manifest, epoch: int, shard: int) -> dict[str, str]:
    """What a shard says of itself: which store, epoch and run of positions it belongs to."""
    return {"store": manifest.fingerprint(), "epoch": str(epoch), "shard": str(shard)}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise MissingShard("it is missing") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise DamagedShard(f"it cannot be read ({error})") from error


def _check(file: Any, manifest: Manifest, epoch: int, shard: int) -> dict[str, str]:
    metadata = file.metadata() or {}
    for key, value in _labels(manifest, epoch, shard).items():
        if metadata.get(key) != value:
            is_other = key == "store"
            raise DamagedShard("it is of another store" if is_other else f"it is {key} {metadata.get(key)}")
    _check_layout(file, manifest, shard)
    try:
        hashes: dict[str, str] = json.loads(metadata.get("hashes", ""))
    except ValueError as error:
        raise DamagedShard("it has no hashes") from error
    if not isinstance(hashes, dict) or set(hashes) != set(manifest.layout()):
        raise DamagedShard("its hashes are of other tensors")
    return hashes


def _check_layout(file: Any, manifest: Manifest, shard: int) -> None:
    layout, names = manifest.layout(), sorted(file.keys())
    if names != sorted(layout):
        raise DamagedShard(f"it holds {', '.join(names)} instead of {', '.join(sorted(layout))}")
    slices = {name: file.get_slice(name) for name in layout}
    (num_rows,) = slices["id"].get_shape() or (-1,)
    if not 0 <= num_rows <= len(manifest.positions(shard)):
        raise DamagedShard(f"it holds {num_rows} rows for {len(manifest.positions(shard))} positions")
    for name, field in layout.items():
        dtype, shape = slices[name].get_dtype(), tuple(slices[name].get_shape())
        if _DTYPES.get(dtype) != field.dtype or shape != (num_rows, *field.row):
            raise DamagedShard(f"its {name} is {dtype} {shape} instead of {field.dtype} {(num_rows, *field.row)}")


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
