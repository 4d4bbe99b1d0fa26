"""What fusion must be compared with: nothing, and a client's own knowledge at the same cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossdistill.federated.strategies.knfu import Array, Clients, KnFu
from crossdistill.federated.strategy import STRATEGIES, Answer, Fused, Strategy, Want


@STRATEGIES.register("local", title="Local", paper="", summary="No exchange: every client trains alone.")
class Local(Strategy):
    """Nobody is asked, nobody is told."""

    wants: frozenset[Want] = frozenset()

    def fuse(self, answers: Sequence[Answer], round_: int) -> Fused:
        """Nothing."""
        return Fused({}, tuple(one.client for one in answers))


@STRATEGIES.register(
    "self",
    title="Self",
    paper="",
    summary="Each client is taught by its own answers: fusion's cost without its knowledge.",
)
class Own(KnFu):
    """The compute-matched control: as many steps on the transfer set, and nothing of the others."""

    def weights(self, knowledge: Clients, answers: Sequence[Answer]) -> Array:
        """Each client itself alone."""
        return np.eye(len(answers))


@STRATEGIES.register(
    "epd_true",
    title="KnFu with true histograms",
    paper="",
    summary="KnFu that is told every client's labels: an oracle for ablations, which reveals them.",
)
class TrueDistributions(KnFu):
    """What the estimate would give if it were right."""

    wants: frozenset[Want] = frozenset({"knowledge", "histogram"})

    def distributions(self, knowledge: Clients, answers: Sequence[Answer]) -> Array:
        """The clients' label counts as shares."""
        counts = np.stack([one.histogram for one in answers if one.histogram is not None]).astype(float)
        shares: Array = counts / counts.sum(axis=1, keepdims=True)
        return shares
