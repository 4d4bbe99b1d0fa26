"""The bound of what could be had if owners shared their data: one network trained on all of it."""

from __future__ import annotations

from collections.abc import Sequence

from crossdistill.federated.strategy import STRATEGIES, Answer, Fused, Strategy, Want


@STRATEGIES.register(
    "centralised",
    title="Centralised",
    paper="",
    summary="One network of each architecture on all images together: what sharing them would give.",
)
class Centralised(Strategy):
    """No federation at all: whoever runs it has all images in one place."""

    wants: frozenset[Want] = frozenset()
    pools = True

    def fuse(self, answers: Sequence[Answer], round_: int) -> Fused:
        """Never asked for."""
        raise RuntimeError("a centralised run has no rounds")
