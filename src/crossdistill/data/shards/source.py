"""Images in local tar files, read at the places that an index gives."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.shards.index import ShardIndex, unreadable
from crossdistill.data.source import CorruptImage
from crossdistill.data.sources.decode import EncodedSource

_MOST_OPEN = 64


class TarSource(EncodedSource):
    """Images in local tar files, read where the index says they lie.

    Args:
        indices: what each of the files holds.
        targets: classes of all samples, in the order of files and samples ``(N,)``.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        indices: Sequence[ShardIndex],
        targets: NDArray[np.int64],
        class_names: tuple[str, ...],
    ) -> None:
        self.name, self.targets, self.class_names = name, targets, class_names
        self._files = TarFiles(files)
        self._ends = np.cumsum([len(index.keys) for index in indices], dtype=np.int64)
        self._keys = np.concatenate([index.keys for index in indices])
        self._offsets = np.concatenate([index.offsets for index in indices])
        self._sizes = np.concatenate([index.sizes for index in indices])

    def file(self, index: int) -> io.BytesIO:
        """The encoded image."""
        size = int(self._sizes[index])
        content = self._files.read(self._shard(index), int(self._offsets[index]), size)
        if len(content) < size:
            raise CorruptImage(self.describe(index), "the shard has become shorter since it was indexed")
        return io.BytesIO(content)

    def describe(self, index: int) -> str:
        """Shard and key of the sample."""
        return f"{self._files.paths[self._shard(index)]}, sample {os.fsdecode(bytes(self._keys[index]))!r}"

    @property
    def files(self) -> Sequence[Path]:
        """The shards."""
        return self._files.paths

    def __len__(self) -> int:
        return len(self._keys)

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))


class _Descriptor:
    """An open file, closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class TarFiles:
    """Files read at places, from any thread; each process opens its own when it needs them, and keeps a few open."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._forget()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of the file of that number; raises :class:`InputError` where the system refuses."""
        try:
            return os.pread(self._open(number).number, size, offset)
        except OSError as error:
            raise unreadable(self.paths[number], error) from error

    def _open(self, number: int) -> _Descriptor:
        with self._lock:
            descriptor = self._kept.pop(number, None) or _Descriptor(self.paths[number])
            self._kept[number] = descriptor  # the last of the dictionary is the one used last
            if len(self._kept) > _MOST_OPEN:
                del self._kept[next(iter(self._kept))]  # another thread may be reading it still, and then closes it
        return descriptor

    def _forget(self) -> None:
        self._kept: dict[int, _Descriptor] = {}
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
