"""InfoNCE between the features of two networks, with the projections and the temperature that it learns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.bridges.gather import gather_rows
from crossdistill.losses.info_nce import info_nce

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 1.0


class Contrast(nn.Module):
    """The loss of one pair: a learner's features ``(B, learner_dim)`` against a source's ``(N, source_dim)``.

    Args:
        learner_dim: width of the features that learn.
        source_dim: width of the features that are compared with.
        projection_dim: project both sides to this width; None projects the learner's to the source's, and only where
            they differ.
        temperature: where the learnt temperature starts.
        symmetric: add the loss in which the source's rows pick theirs among the learner's.
    """

    def __init__(
        self,
        learner_dim: int,
        source_dim: int,
        projection_dim: int | None = None,
        temperature: float = 0.07,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        width = projection_dim or source_dim
        always = projection_dim is not None
        self.learner_projector = projector(learner_dim, width) if always or learner_dim != width else nn.Identity()
        self.source_projector = projector(source_dim, width) if always else nn.Identity()
        self.temperature = LearnableTemperature(temperature)
        self.symmetric = symmetric

    def forward(self, learner: Tensor, source: Tensor, offset: int = 0, excluded: Tensor | None = None) -> Tensor:
        """The scalar loss of this process's rows; those of ``source`` are all processes', ours from ``offset`` on.

        ``excluded`` ``(B, N)`` bool says which rows do not count for which, in both directions (:func:`same_image`).
        """
        queries, keys = self.learner_projector(learner), self.source_projector(source)
        temperature = self.temperature()
        loss = info_nce(queries, keys, temperature=temperature, offset=offset, excluded=excluded)
        if self.symmetric:
            (rows,), _ = gather_rows([queries])
            own = keys[offset : offset + len(queries)]
            loss = loss + info_nce(own, rows, temperature=temperature, offset=offset, excluded=excluded)
        return loss


def same_image(own: Tensor, everyone: Tensor) -> Tensor:
    """Which of all rows show the image of which of our own, ``(B, N)`` bool; an id below 0 is nobody's.

    >>> same_image(torch.tensor([3, -1]), torch.tensor([3, -1, 3]))
    tensor([[ True, False,  True],
            [False, False, False]])

    Args:
        own: ``(B,)``, ids of the samples.
        everyone: ``(N,)``, likewise.
    """
    return (own[:, None] == everyone) & (own >= 0)[:, None]


def projector(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer that starts with weights of deviation 0.02 and no bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class LearnableTemperature(nn.Module):
    """A temperature that is learnt by its logarithm and kept between 0.01 and 1.

    At a bound only the gradient that leads back inside is let through, so that the temperature neither leaves nor
    sticks. The parameter has one element and one dimension: weight decay leaves it alone, and it can be sharded.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.tensor([math.log(initial)]))

    def forward(self) -> Tensor:
        """The temperature, a scalar."""
        bounds = math.log(LOWEST_TEMPERATURE), math.log(HIGHEST_TEMPERATURE)
        return _Bounded.apply(self.logarithm, *bounds).exp().squeeze(0)  # type: ignore[no-any-return]


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, low: float, high: float) -> Tensor:
        ctx.outside = value <= low, value >= high
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), (too_low, too_high) = gradients, ctx.outside
        outwards = (too_low & (gradient > 0)) | (too_high & (gradient < 0))
        return gradient.masked_fill(outwards, 0.0), None, None
