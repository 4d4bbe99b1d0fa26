"""FedMD: one teacher for all, the mean of everybody's answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossdistill.federated.strategies.knfu import Array, Clients, KnFu
from crossdistill.federated.strategy import STRATEGIES, Answer


@STRATEGIES.register(
    "fedmd",
    title="FedMD",
    paper="Li, Wang 2019, arXiv 1910.03581",
    summary="One teacher for all: the mean of everybody's predictions.",
)
class FedMD(KnFu):
    """The mean of softened probabilities (the paper averages class scores), and the same fine-tuning as all others."""

    def weights(self, knowledge: Clients, answers: Sequence[Answer]) -> Array:
        """The same for all."""
        return np.full((len(answers), len(answers)), 1 / len(answers))
