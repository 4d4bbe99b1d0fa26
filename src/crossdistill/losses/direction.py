"""Where vectors point to, without their lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from crossdistill.losses.inputs import widen

MIN_NORM = 1e-6
"""A shorter vector has no direction: it becomes zeros, without gradient."""


def unit(vectors: Tensor) -> Tensor:
    """Each vector ``(D,)`` of ``(..., D)`` at length 1, in float32 or wider, or at length 0 if it has no direction.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    vectors = widen(vectors)
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return (vectors / lengths.clamp(min=MIN_NORM)).masked_fill(lengths < MIN_NORM, 0.0)
