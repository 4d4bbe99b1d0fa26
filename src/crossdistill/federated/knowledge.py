"""What clients send: probabilities for the transfer set, packed into arrays and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import InputError

Transport = Literal["fp32", "fp16", "top_k"]

SOFT, TOP_VALUES, TOP_CLASSES, ROWS = "soft", "top_values", "top_classes", "rows"
"""Names of arrays: probabilities; the largest of them and their classes; the rows that were answered."""

SUM_TOLERANCE = 1e-2
"""Rows add up to 1 but for the roundings of half precision."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Answers to the transfer set, ``soft`` ``(M, C)`` float32 of rows that add up to 1.

    ``rows`` ``(M,)`` says which rows are an answer; the others are uniform and count for nothing.
    """

    soft: NDArray[np.float32]
    rows: NDArray[np.bool_]

    @classmethod
    def of(cls, soft: NDArray[Any], rows: NDArray[np.bool_] | None = None) -> Knowledge:
        """All rows, or those given."""
        every = np.ones(len(soft), dtype=bool) if rows is None else rows
        return cls(soft.astype(np.float32, copy=False), every)


class Refused(Exception):
    """Knowledge that is not what was asked for; the reason names no value of it."""


def pack(knowledge: Knowledge, transport: Transport, *, top_k: int) -> dict[str, NDArray[Any]]:
    """Arrays that carry the knowledge: single or half precision, or the ``top_k`` largest probabilities of a row.

    Rows that are no answer are left out.
    """
    soft = knowledge.soft[knowledge.rows]
    arrays: dict[str, NDArray[Any]] = {}
    if not knowledge.rows.all():
        arrays[ROWS] = np.packbits(knowledge.rows)
    if transport == "top_k" and top_k < soft.shape[1]:
        classes = np.sort(np.argpartition(soft, -top_k, axis=1)[:, -top_k:], axis=1)
        arrays[TOP_CLASSES] = classes.astype(np.min_scalar_type(soft.shape[1] - 1))
        arrays[TOP_VALUES] = np.take_along_axis(soft, classes, axis=1).astype(np.float16)
        return arrays
    arrays[SOFT] = soft.astype(np.float32 if transport == "fp32" else np.float16)
    return arrays


def unpack(arrays: Mapping[str, NDArray[Any]], *, num_samples: int, num_classes: int) -> Knowledge:
    """The knowledge of packed arrays; what half precision or ``top_k`` lost is spread and rows add up to 1 again.

    Of a row of which the largest probabilities were sent, the rest is spread evenly over the other classes.

    Raises:
        Refused: an array that is missing, of another shape or kind, or that holds no probabilities.
    """
    rows = _rows(arrays, num_samples)
    shape = (int(rows.sum()), num_classes)
    if TOP_VALUES in arrays:
        soft = _spread(arrays, shape)
    else:
        soft = _array(arrays, SOFT, shape, kinds="f")
        _check_probabilities(soft)
    soft = np.clip(soft.astype(np.float64), 0.0, 1.0)
    full = np.full((num_samples, num_classes), 1 / num_classes)
    full[rows] = soft / soft.sum(axis=1, keepdims=True)
    return Knowledge(full.astype(np.float32), rows)


def num_bytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    """What the arrays take on the network, but for headers of about a hundred bytes each."""
    return sum(array.nbytes for array in arrays.values())


def check_transport(transport: Transport, top_k: int, num_classes: int) -> None:
    """Refuse to send more classes than there are."""
    if transport == "top_k" and not 1 <= top_k <= num_classes:
        raise InputError(
            f"transport.top_k={top_k} for {num_classes} classes", f"a number from 1 to {num_classes}", "change it"
        )


def _rows(arrays: Mapping[str, NDArray[Any]], num_samples: int) -> NDArray[np.bool_]:
    if ROWS not in arrays:
        return np.ones(num_samples, dtype=bool)
    packed = _array(arrays, ROWS, (-(-num_samples // 8),), kinds="u")
    if packed.dtype != np.uint8:
        raise Refused(f"array {ROWS} of {packed.dtype}, where uint8 was expected")
    return np.unpackbits(packed, count=num_samples).astype(bool)


def _spread(arrays: Mapping[str, NDArray[Any]], shape: tuple[int, int]) -> NDArray[np.float64]:
    num_rows, num_classes = shape
    values = arrays[TOP_VALUES]
    if values.ndim != 2 or values.shape[0] != num_rows or not 1 <= values.shape[1] < num_classes:
        raise Refused(f"array {TOP_VALUES} of shape {values.shape}, where ({num_rows}, k < {num_classes}) was expected")
    values = _array(arrays, TOP_VALUES, values.shape, kinds="f").astype(np.float64)
    named = _array(arrays, TOP_CLASSES, values.shape, kinds="u")
    classes = np.minimum(named, num_classes).astype(np.int64)  # the largest unsigned numbers would become negative
    if (classes >= num_classes).any() or (np.diff(classes, axis=1) <= 0).any():
        raise Refused(f"array {TOP_CLASSES} with classes out of range or named twice")
    if not np.isfinite(values).all() or (values < 0).any() or (values.sum(axis=1) > 1 + SUM_TOLERANCE).any():
        raise Refused(f"array {TOP_VALUES}, which holds no probabilities")
    rest = np.clip(1 - values.sum(axis=1, keepdims=True), 0, None) / (num_classes - values.shape[1])
    soft = np.broadcast_to(rest, shape).copy()
    np.put_along_axis(soft, classes, values, axis=1)
    return soft


def _array(arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...], *, kinds: str) -> NDArray[Any]:
    array = arrays.get(name)
    if array is None:
        raise Refused(f"no array {name}, but {len(arrays)} other(s)")
    if array.shape != shape or array.dtype.kind not in kinds:
        raise Refused(f"array {name} of {array.dtype} {array.shape}, where {shape} was expected")
    return array


def _check_probabilities(soft: NDArray[Any]) -> None:
    if not np.isfinite(soft).all():
        raise Refused("probabilities that are not finite")
    if (soft < 0).any() or (soft > 1).any():
        raise Refused("probabilities outside 0 and 1")
    if (np.abs(soft.sum(axis=1, dtype=np.float64) - 1) > SUM_TOLERANCE).any():
        raise Refused("rows of probabilities that do not add up to 1")
