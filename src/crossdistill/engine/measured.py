"""The accuracy of the networks that a method makes of its own, which shows whether it works."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from crossdistill.contracts import Batch
from crossdistill.engine.copies import Copies
from crossdistill.engine.evaluate import evaluate

SUFFIX = "_top1"
"""How the figures of these networks end in an evaluation's line, after their names."""


def measured(weights: Copies, loader: Iterable[Batch], **how: Any) -> dict[str, float]:
    """Top-1 by ``NAME_top1`` of each network in ``Method.measured()``, with the weights that are being trained.

    These are not averaged: what is shown is what teaches now, also where the student that is exported is an average.

    Args:
        weights: of the run.
        loader: what the student is evaluated on, too.
        how: of :func:`~crossdistill.engine.evaluate.evaluate`.
    """
    with weights.measured() as networks:
        return {
            f"{name}{SUFFIX}": evaluate(network, loader, view=str(network.view), **how)["top1"]
            for name, network in networks.items()
        }


def below_student(line: dict[str, Any]) -> list[str]:
    """What must be said of such networks that an evaluation found less accurate than the student."""
    return [
        f"the {key.removesuffix(SUFFIX)} network of the method ends at {value:.1%} top-1, below the student's "
        f"{line['top1']:.1%}: what it passes on is worse than what the student knows"
        for key, value in line.items()
        if key.endswith(SUFFIX) and value < line["top1"]
    ]
