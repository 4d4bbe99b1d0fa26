"""Selective-FD, in a light form: the mean of those who know an image, where that mean is sure of itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossdistill.federated.knowledge import Knowledge
from crossdistill.federated.selection import certain
from crossdistill.federated.strategy import STRATEGIES, Answer, Fused, Strategy, Told, Want


@STRATEGIES.register(
    "selective_fd",
    title="Selective-FD (lite)",
    paper="Shao, Wu, Zhang 2023, arXiv 2304.01731 (our light form of its selectors)",
    summary="FedMD of the images that a client knows, without those that the mean is unsure of.",
)
class SelectiveFD(Strategy):
    """Clients leave out unfamiliar images, the server drops uncertain answers."""

    wants: frozenset[Want] = frozenset({"knowledge", "selection"})

    def fuse(self, answers: Sequence[Answer], round_: int) -> Fused:
        """One teacher for all, with the rows that are left."""
        given = [one.knowledge for one in answers if one.knowledge is not None]
        count = np.add.reduce([one.rows.astype(int) for one in given])
        total = np.add.reduce([np.where(one.rows[:, None], one.soft, 0.0) for one in given])
        mean = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], 1 / total.shape[1])
        rows = (count > 0) & certain(mean)
        told = {one.client: Told(Knowledge.of(mean, rows)) for one in answers}
        note = f"{int(rows.sum())} of {len(rows)} transfer images taught"
        return Fused(told, tuple(one.client for one in answers), None, (note,))
