"""Fusion of many clients whose knowledge lies on disk: a block of samples at a time, however much all of it is.

Each client's knowledge is an array ``(M, C)`` of half precision, and is read twice: for the estimated distributions in
float64, of which the weights are made as in :mod:`crossdistill.federated.fusion`; then block by block for the teachers,
a float32 matrix product. Rows are made to add up to 1 again after reading, as on receipt. A probability comes out,
against the same fusion in float64 of ``exact``, off by at most (N + C below 150,000)

    ``(2^-11 + 1.01 (N + C + 2) 2^-24) exact + 2^-24``

All terms are positive, so none cancel: whatever the order, the sum of a row takes C roundings of float32 and that over
clients N. The rest is half precision's own rounding, and weights that are left out because all of them together are
below half of its least step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from crossdistill.errors import InputError
from crossdistill.federated.fusion import Array, cut_neighbours, divergences, fusion_weights, smooth
from crossdistill.federated.knowledge import SUM_TOLERANCE
from crossdistill.files import writing

Half = NDArray[np.float16]
Knowledge = Sequence[Path | Half] | Half
"""Of N clients, each ``(M, C)``: ``.npy`` files, or arrays, or one array ``(N, M, C)``; arrays may be mapped files."""

BLOCK_BYTES = 2**28
LEFT_OUT = 2.0**-26
"""What the weights of a row that are left out add up to at most."""
SPARSE = 0.05
"""Sparse rows are multiplied where fewer of all weights count: on a CPU a dense product was faster from 7 % on."""


def fuse_blocks(
    knowledge: Knowledge, out: Path, *, beta: float, threshold: float = 0.0, block_bytes: int = BLOCK_BYTES
) -> Array:
    """Write each client's own teacher, and return the weights ``(N, N)`` that made it.

    Args:
        knowledge: float16, of N clients.
        out: the ``.npy`` file ``(N, M, C)`` of float16, which appears once it is complete; see :func:`read_teacher`.
        beta: as in :func:`~crossdistill.federated.fusion.fusion_weights`.
        threshold: as in :func:`~crossdistill.federated.fusion.cut_neighbours`.
        block_bytes: about what is held at once beside the weights; one sample of all clients where that is more.

    Raises:
        InputError: knowledge of different shapes, of another type or with rows that do not add up; no room for it.
    """
    distributions = block_distributions(knowledge, block_bytes=block_bytes)
    weights = cut_neighbours(fusion_weights(divergences(smooth(distributions)), beta), threshold)
    write_teachers(knowledge, weights, out, block_bytes=block_bytes)
    return weights


def read_teacher(fused: Path, receiver: int) -> Half:
    """One client's teacher ``(M, C)``, read without the others."""
    mapped: Half = np.load(fused, mmap_mode="r")
    return np.array(mapped[receiver])


def block_distributions(knowledge: Knowledge, *, block_bytes: int = BLOCK_BYTES) -> Array:
    """Estimated distributions ``(N, C)``: the means of rows that were made to add up to 1.

    Raises:
        InputError: knowledge of different shapes, of another type or with rows that do not add up.
    """
    num_clients, num_samples, num_classes = _shape(knowledge)
    found = np.zeros((num_clients, num_classes))
    for client, source in enumerate(knowledge):
        for start, stop in _blocks(num_samples, 8 * (num_classes + 3), block_bytes):
            total = _total(_mapped(source)[start:stop])
            if total is None:
                raise InputError(
                    f"knowledge of client {client} with rows that do not add up to 1",
                    "probabilities of every sample",
                    "leave this client out, or ask it again",
                )
            found[client] += total
    return found / num_samples


def write_teachers(knowledge: Knowledge, weights: Array, out: Path, *, block_bytes: int = BLOCK_BYTES) -> None:
    """Write the teachers of R receivers with weights ``(R, N)``: a ``.npy`` file ``(R, M, C)`` of float16.

    A receiver's teacher is one piece of the file. The knowledge is taken as checked.

    Raises:
        InputError: weights for another number of clients, or no room for the file.
    """
    num_clients, num_samples, num_classes = _shape(knowledge)
    num_receivers = len(weights)
    if weights.shape != (num_receivers, num_clients):
        raise InputError(f"weights of shape {weights.shape}", f"(receivers, {num_clients})", "weigh these clients")
    factors = _factors(weights)
    row_bytes = 4 * (num_clients + num_receivers) * num_classes
    with _appearing(out) as file:
        header = {"descr": np.dtype(np.float16).str, "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, header | {"shape": (num_receivers, num_samples, num_classes)})
        begin = file.tell()
        for start, stop in _blocks(num_samples, row_bytes, block_bytes):
            # Neither has a name, so that both are freed before the next block is read.
            _put(file, begin, _fused(factors, _block(knowledge, start, stop, num_classes)), start, num_samples)


def _shape(knowledge: Knowledge) -> tuple[int, int, int]:
    """``(N, M, C)``, where all clients agree on it."""
    found: tuple[int, ...] | None = None
    for client, source in enumerate(knowledge):
        try:
            array = _mapped(source)
        except (OSError, ValueError) as error:
            raise InputError(f"knowledge of client {client}: {error}", "a .npy file", "write it again") from error
        if array.dtype != np.float16 or array.ndim != 2 or 0 in array.shape or array.shape != (found or array.shape):
            raise InputError(
                f"knowledge of client {client} is {array.dtype} of shape {array.shape}",
                f"float16 of shape {found or '(samples, classes)'}",
                "write the knowledge of all clients alike",
            )
        found = array.shape
    if found is None:
        raise InputError("knowledge of no client", "that of one or more", "wait for the clients")
    return len(knowledge), found[0], found[1]


def _mapped(source: Path | Half) -> Half:
    """A file is mapped only while it is looked at: neither its pages nor its descriptor stay."""
    array: Half = np.load(source, mmap_mode="r") if isinstance(source, Path) else source
    return array


def _blocks(num_samples: int, row_bytes: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    size = max(1, block_bytes // row_bytes)
    for start in range(0, num_samples, size):
        yield start, min(start + size, num_samples)


def _total(rows: Half) -> Array | None:
    """The sum ``(C,)`` of rows that were made to add up to 1; nothing where one is far from that."""
    exact = rows.astype(np.float64)
    sums = exact.sum(axis=1, keepdims=True)
    if not (np.abs(sums - 1) <= SUM_TOLERANCE).all():  # also where one is not a number
        return None
    exact /= sums
    total: Array = exact.sum(axis=0)  # no matrix product: its threads wait longer than they work
    return total


def _block(knowledge: Knowledge, start: int, stop: int, num_classes: int) -> NDArray[np.float32]:
    """Some samples of all clients, ``(N, samples, C)``; each adds up to 1."""
    block = np.empty((len(knowledge), stop - start, num_classes), dtype=np.float32)
    for rows, source in zip(block, knowledge, strict=True):
        rows[:] = _mapped(source)[start:stop]
        rows /= rows.sum(axis=1, keepdims=True)
    return block


def _factors(weights: Array) -> Any:
    """Those weights that count, in single precision: an array, or sparse rows where they are few."""
    counts = weights > LEFT_OUT / weights.shape[1]
    factors = np.where(counts, weights, 0.0).astype(np.float32)
    return csr_array(factors) if counts.mean() < SPARSE else factors


def _fused(factors: Any, block: NDArray[np.float32]) -> NDArray[np.float32]:
    """The teachers' samples, ``(R, samples, C)``."""
    fused: NDArray[np.float32] = factors @ block.reshape(len(block), -1)
    return fused.reshape(-1, *block.shape[1:])


def _put(file: IO[bytes], begin: int, fused: NDArray[np.float32], start: int, num_samples: int) -> None:
    """Write each receiver's samples to their place in the file, whose data begin at ``begin``."""
    num_classes = fused.shape[2]
    for receiver, rows in enumerate(fused):
        file.seek(begin + 2 * num_classes * (receiver * num_samples + start))
        file.write(_halves(rows).tobytes())


def _halves(values: NDArray[np.float32]) -> Half:
    """Values of 0 and more in half precision; those given are rounded in place where they are small.

    Below 2^-14 half precision counts in steps of 2^-24, as single precision does from 0.5 on. Numpy rounds so too, but
    raises a flag of the processor for each such value, which costs six times as much.
    """
    np.copyto(values, (values + 0.5) - 0.5, where=values < 2.0**-14)
    return values.astype(np.float16)


@contextmanager
def _appearing(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there once it is complete. While it is written it is not mapped: a full disk would be a crash."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path.parent):
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
