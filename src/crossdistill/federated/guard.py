"""A guard against knowledge that does not belong to the samples: answers of two clients must agree row by row.

The estimated distribution is a mean over samples, and hence blind to their order: a client that shuffles its rows keeps
its weight. Two clients that looked at the same images agree more on each than on a random pair of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.federated.fusion import BLOCK_BYTES, sample_blocks

Array = NDArray[np.float64]

LEAST_AGREEMENT = 0.2


def agreement(knowledge: Sequence[NDArray[Any]], *, block_bytes: int = BLOCK_BYTES) -> Array:
    """How far each pair agrees sample by sample, beyond what their means explain: N arrays ``(M, C)`` to ``(N, N)``.

    The mean cosine of equal rows, less its expectation over shuffled rows, scaled so that 1 is perfect agreement and 0
    (or less, then 0) what shuffling gives. Clients that answer all samples alike agree with nobody but themselves.

    By chance a shuffled pair agrees by about ``(M (C - 1)) ** -0.5``: with fewer than some 200 samples that may come
    near the limit that is asked for.
    """
    num_clients, (num_samples, num_classes) = len(knowledge), knowledge[0].shape
    equal_rows, means = np.zeros((num_clients, num_clients)), np.zeros((num_clients, num_classes))
    for rows in sample_blocks(num_samples, 16 * num_classes * num_clients, block_bytes):
        block = np.stack([one[rows] for one in knowledge]).astype(np.float64, copy=False)
        norms = np.linalg.norm(block, axis=2, keepdims=True)
        units = block / np.maximum(norms, np.finfo(np.float64).tiny)
        flat = units.reshape(num_clients, -1)
        equal_rows += flat @ flat.T / num_samples
        means += units.sum(axis=1) / num_samples
    shuffled_rows = means @ means.T
    room = 1 - shuffled_rows
    found: Array = np.clip(np.where(room > 1e-9, (equal_rows - shuffled_rows) / np.maximum(room, 1e-9), 0.0), 0.0, 1.0)
    np.fill_diagonal(found, 1.0)
    return found


def heard(weights: Array, agreed: Array, *, least: float = LEAST_AGREEMENT) -> Array:
    """Fusion weights ``(N, N)`` without the teachers that a client does not agree with; never without itself."""
    left = np.where(agreed >= least, weights, 0.0)
    np.fill_diagonal(left, np.maximum(weights.diagonal(), np.finfo(np.float64).tiny))
    guarded: Array = left / left.sum(axis=1, keepdims=True)
    return guarded
