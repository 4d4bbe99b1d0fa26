"""Filling a store: any number of processes, each writing shards of its own, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from crossdistill.differences import shown
from crossdistill.errors import InputError
from crossdistill.files import NO_ROOM, sync
from crossdistill.store import manifest as manifests
from crossdistill.store.codec import encode
from crossdistill.store.manifest import LARGEST_ID, LARGEST_OCCURRENCE, Manifest
from crossdistill.store.partial import is_partial, put_first, remove_abandoned
from crossdistill.store.shard import DamagedShard, check_header, epoch_path, shard_path, write_shard


class StoreWriter:
    """Writes shards into the store at ``path``; see :meth:`open`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: Path, manifest: Manifest) -> Self:
        """Make the store, or go on with it where it is there; what killed writers left half-written is removed.

        Of several writers that start at once, one makes the manifest and the others compare theirs with it.

        Raises:
            InputError: the store there is another one, the folder holds something else, or cannot be written.
        """
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
            if not (path / manifests.FILE).exists():
                check_folder(path)
                put_first(path / manifests.FILE, manifest.to_json())
        stored = manifests.load(path)
        changed = stored.differences(manifest)
        if changed:
            raise InputError(
                f"store {path}, which holds other answers ({shown(changed)})",
                "what the store was begun with",
                "give the same again to go on with it, or give another folder",
            )
        for folder in (path, *path.glob("epoch-*")):
            remove_abandoned(folder)
        return cls(path, stored)

    def missing(self, num_epochs: int) -> list[tuple[int, int]]:
        """The (epoch, shard) of the first ``num_epochs`` that are not there whole, in order."""
        every = [(epoch, shard) for epoch in range(num_epochs) for shard in range(self.manifest.num_shards)]
        return self.still_missing(every)

    def still_missing(self, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of these (epoch, shard) that are not there whole, in order; others are not looked at."""
        return [place for place in places if not self._is_whole(*place)]

    def unreadable(self, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of these missing (epoch, shard) that have a file, which is not whole and will be replaced."""
        return [place for place in places if shard_path(self.path, *place).exists()]

    def write(self, epoch: int, shard: int, samples: Tensor, logits: Tensor, embeddings: Sequence[Tensor] = ()) -> None:
        """Write one shard; one that is there is replaced.

        Args:
            samples: ``(N, 2)`` int64, ids and occurrences; images that cannot be read are simply not among them.
            logits: ``(N, K)``, finite, on any device.
            embeddings: ``(N, D)`` of each teacher, where they are kept.

        Raises:
            InputError: sizes that do not fit the manifest, values that are not finite or that fp16 cannot hold, or a
                disk that is full or may not be written; the shards written before are as they were.
        """
        self._check(epoch, shard, samples, logits, embeddings)
        encoded = encode(logits, embeddings, self.manifest.keep)
        samples = samples.cpu()
        rows = {"id": samples[:, 0].to(torch.uint32), "occurrence": samples[:, 1].to(torch.uint16)}
        rows |= {name: row.cpu() for name, row in encoded.items()}
        folder = epoch_path(self.path, epoch)
        with _writing(self.path):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                sync(self.path)
            contiguous = {name: row.contiguous() for name, row in rows.items()}
            write_shard(self.path, self.manifest, epoch, shard, contiguous)

    def _is_whole(self, epoch: int, shard: int) -> bool:
        try:
            check_header(self.path, self.manifest, epoch, shard)
        except DamagedShard:
            return False
        return True

    def _check(self, epoch: int, shard: int, samples: Tensor, logits: Tensor, embeddings: Sequence[Tensor]) -> None:
        manifest, num_rows = self.manifest, len(samples)
        room = len(manifest.positions(shard))
        expected = [(num_rows, 2), (num_rows, manifest.num_classes), *((num_rows, d) for d in manifest.embedding_dims)]
        given = [tuple(one.shape) for one in (samples, logits, *embeddings)]
        if given != expected or samples.dtype != torch.int64 or num_rows > room or epoch < 0:
            raise InputError(
                f"samples {given[0]} {str(samples.dtype).removeprefix('torch.')}, logits {given[1]} and embeddings "
                f"{given[2:]} for shard {shard} of epoch {epoch}",
                f"samples (N, 2) int64 with N up to {room}, logits (N, {manifest.num_classes}) and embeddings "
                f"{[('N', dim) for dim in manifest.embedding_dims]}",
                "give what the store's manifest says",
            )
        limits = torch.tensor([LARGEST_ID, LARGEST_OCCURRENCE], device=samples.device)
        if bool(((samples < 0) | (samples > limits)).any()):
            raise InputError(
                f"samples with ids {samples[:, 0].min()} to {samples[:, 0].max()} and occurrences "
                f"{samples[:, 1].min()} to {samples[:, 1].max()}",
                f"ids from 0 to {LARGEST_ID:,} and occurrences from 0 to {LARGEST_OCCURRENCE:,}",
                "give positions in the source's canonical order",
            )


def check_folder(path: Path) -> None:
    """Refuse a place where no store can be begun, nor is there one; nothing is made there.

    Raises:
        InputError: a file, or a folder that holds something else.
    """
    if not path.is_dir():
        if path.exists():
            raise InputError(f"{path}, which is a file", "a folder for the store", "give another --out")
        return
    manifests.check_manifest(path)
    others = sorted(one.name for one in path.iterdir() if not is_partial(one))
    if others and not (path / manifests.FILE).exists():  # another writer may have made it meanwhile
        raise InputError(
            f"{path}, which holds something else: {', '.join(others[:4])}",
            "a folder that is empty, is not there yet, or holds a store",
            "give another --out",
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        is_full = error.errno in NO_ROOM
        room = next((one for one in (path, *path.parents) if one.exists()), Path.cwd())
        free = f"; {shutil.disk_usage(room).free / 2**20:,.0f} MiB are free" if is_full else ""
        raise InputError(
            f"cannot write below {path}: {error.strerror}{free}",
            "a folder that can be written and has room",
            "make room and give the same again: the shards written before are whole and stay"
            if is_full
            else "make it writable, or give another --out",
        ) from error
