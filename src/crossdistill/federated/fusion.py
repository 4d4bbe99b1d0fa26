"""Effective knowledge fusion: whose predictions a client should learn from, and how much of each.

Seyedmohammadi et al. 2024, arXiv 2403.11892 ("KnFu"). Its four steps and the scale of 10 are the paper's; the formulas
of the estimated distribution and of the weights could not be read in full and are **our reconstruction**. Each is one
small function here, so that one of them can be corrected without touching anything else.

N clients answered the same M transfer samples with probabilities of C classes; everything is float64, since weights of
clients that share no class are as small as 1e-60.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BLOCK_BYTES = 2**27
"""What is held at once of many clients' knowledge in float64: a thousand clients need not fit in memory twice."""

SMOOTHING = 1e-6
"""Added to each class of an estimated distribution, so that a class that is never predicted leaves it finite."""


def estimated_distribution(knowledge: NDArray[Any]) -> Array:
    """What a client's data seem to hold of each class: the mean of its predictions, ``(M, C)`` to ``(C,)``.

    Overfitted predictions lean towards the classes that were trained on.
    """
    mean: Array = knowledge.mean(axis=0, dtype=np.float64)
    return mean


def smooth(distributions: Array, *, smoothing: float = SMOOTHING) -> Array:
    """Distributions ``(N, C)`` without zeros: ``(p + smoothing) / (1 + C * smoothing)``."""
    smoothed: Array = (distributions + smoothing) / (1 + distributions.shape[-1] * smoothing)
    return smoothed


def relative(distributions: Array) -> Array:
    """Distributions ``(N, C)`` divided by their mean over clients, for a transfer set that is not balanced.

    What all clients predict often is what the transfer set holds often, and says nothing of any of them.
    """
    share = distributions / np.maximum(distributions.mean(axis=0), SMOOTHING)
    total: Array = share.sum(axis=1, keepdims=True)
    divided: Array = share / total
    return divided


def divergences(distributions: Array) -> Array:
    """``KL(receiver || teacher)`` in nats of each pair, ``(N, C)`` to ``(N, N)``, receivers in rows.

    This direction punishes a teacher that lacks the receiver's classes, and is lenient to one that knows more.

    >>> divergences(np.array([[0.9, 0.1], [0.8, 0.2]])).round(6).tolist()
    [[0.0, 0.03669], [0.044403, 0.0]]
    """
    logs = np.log(distributions)
    own = (distributions * logs).sum(axis=1)
    between: Array = np.maximum(own[:, None] - distributions @ logs.T, 0.0)  # rounding may go below
    np.fill_diagonal(between, 0.0)
    return between


def fusion_weights(divergence: Array, beta: float) -> Array:
    """``exp(-beta * divergence)``, each row normalised, ``(N, N)``: how much each receiver learns from each teacher.

    0 is the uniform mean (FedMD); the larger, the more a client listens to itself alone.

    >>> fusion_weights(np.array([[0.0, np.log(3)], [np.log(3), 0.0]]), beta=1.0).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    scores = -beta * divergence
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights: Array = scores / scores.sum(axis=1, keepdims=True)
    return weights


def cut_neighbours(weights: Array, threshold: float) -> Array:
    """Drop teachers whose weight is below ``threshold / N``, never the client itself; the rest adds up to 1 again."""
    kept = weights >= threshold / len(weights)
    np.fill_diagonal(kept, True)
    left = np.where(kept, weights, 0.0)
    cut: Array = left / left.sum(axis=1, keepdims=True)
    return cut


def fuse(
    knowledge: Sequence[NDArray[Any]],
    weights: Array,
    *,
    dtype: type[np.floating[Any]] = np.float64,
    block_bytes: int = BLOCK_BYTES,
) -> NDArray[Any]:
    """Each client's own teacher: N arrays ``(M, C)`` and weights ``(R, N)`` to ``(R, M, C)``; rows stay distributions.

    Args:
        dtype: of the result; what is computed is float64.
        block_bytes: about what is held beside knowledge and result: samples are taken a block at a time.
    """
    num_samples, num_classes = knowledge[0].shape
    fused = np.empty((len(weights), num_samples, num_classes), dtype=dtype)
    for rows in sample_blocks(num_samples, 8 * num_classes * (len(knowledge) + len(weights)), block_bytes):
        block = np.stack([one[rows] for one in knowledge]).astype(np.float64, copy=False)
        fused[:, rows] = (weights @ block.reshape(len(block), -1)).reshape(len(weights), -1, num_classes)
    return fused


def sample_blocks(num_samples: int, row_bytes: int, block_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Samples in blocks that take about ``block_bytes``, where one takes ``row_bytes``."""
    size = max(1, block_bytes // row_bytes)
    for start in range(0, num_samples, size):
        yield slice(start, min(start + size, num_samples))


def effective_neighbours(weights: Array) -> Array:
    """How many clients each one really learns from, itself included: ``1 / sum(weights ** 2)`` of its row ``(N,)``."""
    number: Array = 1 / (weights**2).sum(axis=1)
    return number


def sharpen(knowledge: Array, power: float) -> Array:
    """Probabilities ``(..., C)`` of temperature T as those of temperature T / power: raised to it, and normalised."""
    raised = (knowledge / knowledge.max(axis=-1, keepdims=True)) ** power  # the largest stays, however small it is
    sharpened: Array = raised / raised.sum(axis=-1, keepdims=True)
    return sharpened
