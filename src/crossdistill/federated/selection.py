"""Selective-FD, in a light form: clients answer only what they know, and the server drops what nobody is sure of.

Shao, Wu, Zhang, "Selective knowledge sharing for privacy-preserving federated distillation", 2023, arXiv 2304.01731.
The paper's selector estimates densities with a learnt ratio; ours takes the distance to the nearest own images, which
needs no network of its own. Hence "lite".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

NEIGHBOURS = 3
QUANTILE = 0.95
"""A transfer image is familiar if it is as near to the client's own images as 95 % of these are to each other."""

MOST_ENTROPY = 0.9
"""Of ln C: a mean answer that is more uncertain teaches nothing."""


def familiar(transfer: NDArray[Any], own: NDArray[Any]) -> NDArray[np.bool_]:
    """Which transfer embeddings ``(M, D)`` lie among those of the client's own images ``(K, D)``, as a mask ``(M,)``.

    With fewer than two images of its own a client knows nothing.
    """
    if len(own) < 2:
        return np.zeros(len(transfer), dtype=bool)
    count = min(NEIGHBOURS, len(own) - 1)
    index = NearestNeighbors(n_neighbors=count).fit(own)
    among_own = index.kneighbors()[0].mean(axis=1)  # without the image itself
    reached: NDArray[np.bool_] = index.kneighbors(transfer)[0].mean(axis=1) <= np.quantile(among_own, QUANTILE)
    return reached


def certain(soft: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows of probabilities ``(M, C)`` are less uncertain than :data:`MOST_ENTROPY`, as a mask ``(M,)``."""
    entropy = -(soft * np.log(np.maximum(soft, 1e-12))).sum(axis=1)
    sure: NDArray[np.bool_] = entropy <= MOST_ENTROPY * np.log(soft.shape[1])
    return sure
