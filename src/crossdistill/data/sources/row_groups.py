"""What is read of a parquet file: its metadata, a whole column, or the row groups of a column one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crossdistill.errors import InputError

_LIMIT_BYTES = 512 * 2**20


class RowGroups:
    """A column of several files, of which whole row groups are read and the last ones, up to so many bytes, kept.

    Args:
        limit_bytes: most bytes kept; the row group that was asked for last is kept at any rate.
    """

    def __init__(self, files: Sequence[Path], column: str, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self.files, self._column, self._limit_bytes = files, column, limit_bytes
        metadata = [read_metadata(file) for file in files]
        self._groups = [(shard, group) for shard, one in enumerate(metadata) for group in range(one.num_row_groups)]
        sizes = [metadata[shard].row_group(group).num_rows for shard, group in self._groups]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._file_ends = np.cumsum([one.num_rows for one in metadata], dtype=np.int64)
        self._forget()

    def __getitem__(self, row: int) -> Any:
        """The cell of a row, counted over all files."""
        number = int(self.group_of(row))
        return self._group(number)[row - _start(self._ends, number)].as_py()

    def group_of(self, rows: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Numbers of the row groups in which these rows lie, counted over all files."""
        return np.searchsorted(self._ends, rows, side="right")

    def place(self, row: int) -> tuple[Path, int]:
        """File of a row, and its row there."""
        shard = int(np.searchsorted(self._file_ends, row, side="right"))
        return self.files[shard], row - _start(self._file_ends, shard)

    def _group(self, number: int) -> Any:
        with self._lock:  # images are decoded in threads
            cells = self._kept.pop(number, None)
            if cells is None:
                shard, group = self._groups[number]
                cells = _row_group(self.files[shard], group, self._column)
                self._num_bytes += cells.nbytes
            self._kept[number] = cells  # the last of the dictionary is the one used last
            while self._num_bytes > self._limit_bytes and len(self._kept) > 1:
                self._num_bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return cells

    def _forget(self) -> None:
        self._kept: dict[int, Any] = {}
        self._num_bytes = 0
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_kept", "_num_bytes", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()  # a worker process reads the files itself


def read_metadata(file: Path) -> Any:
    """Number of rows, row groups and schema; raises :class:`InputError` for an unreadable file."""
    try:
        return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def read_column(file: Path, column: str) -> Any:
    """All cells of a column; raises :class:`InputError` for an unreadable file."""
    try:
        return pq.read_table(file, columns=[column], memory_map=True, partitioning=None)[column]
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _row_group(file: Path, group: int, column: str) -> Any:
    try:
        with pq.ParquetFile(file, memory_map=True) as opened:
            return opened.read_row_group(group, columns=[column])[column]
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _start(ends: NDArray[np.int64], number: int) -> int:
    return int(ends[number - 1]) if number else 0


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"parquet file {file}: {error}", "a complete parquet file", "fetch or write the file again")
