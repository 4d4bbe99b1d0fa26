"""KnFu: each client's teacher is a weighted mean of all answers, by how alike the estimated distributions are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.federated.fusion import (
    cut_neighbours,
    divergences,
    estimated_distribution,
    fuse,
    fusion_weights,
    relative,
    smooth,
)
from crossdistill.federated.guard import agreement, heard
from crossdistill.federated.knowledge import Knowledge
from crossdistill.federated.settings import FusionSettings
from crossdistill.federated.strategy import STRATEGIES, Answer, Fused, Strategy, Told

Array = NDArray[np.float64]
Clients = Sequence[NDArray[Any]]
"""The probabilities ``(M, C)`` of each client."""


@STRATEGIES.register(
    "knfu",
    title="KnFu",
    paper="Seyedmohammadi, Atapour, Abouei, Mohammadi 2024, arXiv 2403.11892 (weights: our reconstruction)",
    summary="A teacher of its own for each client, mostly of clients with similar predictions.",
)
class KnFu(Strategy):
    """Effective knowledge fusion; with ``fusion.guard``, answers that do not belong to the images have no say."""

    def fuse(self, answers: Sequence[Answer], round_: int) -> Fused:
        """One teacher a client."""
        knowledge = knowledge_of(answers)
        matrix, notes = guarded(self.settings.fusion, knowledge, self.weights(knowledge, answers), answers)
        teachers = fuse(knowledge, matrix, dtype=np.float32)
        told = {one.client: Told(Knowledge.of(teacher)) for one, teacher in zip(answers, teachers, strict=True)}
        return Fused(told, tuple(one.client for one in answers), matrix, notes)

    def weights(self, knowledge: Clients, answers: Sequence[Answer]) -> Array:
        """How much each client learns from each, ``(N, N)``."""
        return weights_of(self.settings.fusion, self.distributions(knowledge, answers))

    def distributions(self, knowledge: Clients, answers: Sequence[Answer]) -> Array:
        """What each client seems to hold of each class ``(N, C)``."""
        return np.stack([estimated_distribution(one) for one in knowledge])


def weights_of(how: FusionSettings, distributions: Array) -> Array:
    """Fusion weights ``(N, N)`` of estimated distributions ``(N, C)``."""
    compared = smooth(relative(distributions) if how.relative else distributions)
    weights = fusion_weights(divergences(compared), how.beta)
    return cut_neighbours(weights, how.threshold) if how.threshold else weights


def guarded(
    how: FusionSettings, knowledge: Clients, weights: Array, answers: Sequence[Answer]
) -> tuple[Array, tuple[str, ...]]:
    """The weights ``(N, N)`` after the guard, where it is on, and a note on each client that few others still hear."""
    if not how.guard:
        return weights, ()
    after = heard(weights, agreement(knowledge), least=how.least_agreement)
    lost = ((weights > 0) & (after == 0)).sum(axis=0) > (len(answers) - 1) / 2
    notes = tuple(
        f"client {one.client}: its answers do not belong to the images, so others do not hear it"
        for one, is_lost in zip(answers, lost, strict=True)
        if is_lost
    )
    return after, notes


def knowledge_of(answers: Sequence[Answer]) -> list[NDArray[np.float32]]:
    """The probabilities ``(M, C)`` of each client, as they came."""
    return [one.knowledge.soft for one in answers if one.knowledge is not None]
