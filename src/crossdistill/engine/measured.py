"""The accuracy of the networks that a method makes of its own, which shows whether it works."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from crossdistill.contracts import Batch
from crossdistill.engine.copies import Copies
from crossdistill.engine.evaluate import evaluate
from crossdistill.engine.exam import Exam
from crossdistill.engine.record import FitResult
from crossdistill.settings import TrainSettings

SUFFIX = "_top1"
"""How the figures of these networks end in an evaluation's line, after their names."""

STANDARD_ERRORS = 3


def measured(weights: Copies, loader: Iterable[Batch] | Exam, **how: Any) -> dict[str, float]:
    """Top-1 by ``NAME_top1`` of each network in ``Method.measured()``, with the weights that are being trained.

    These are not averaged: what is shown is what teaches now, also where the student that is exported is an average.

    Args:
        weights: of the run.
        loader: what the student is evaluated on, too.
        how: of :func:`~crossdistill.engine.evaluate.evaluate`.
    """
    if isinstance(loader, Exam):  # which asks its own questions, of the student alone
        return {}
    with weights.measured() as networks:
        return {
            f"{name}{SUFFIX}": evaluate(network, loader, view=str(network.view), **how)["top1"]
            for name, network in networks.items()
        }


def below_student(result: FitResult, settings: TrainSettings) -> list[str]:
    """What must be said of such networks that are clearly less accurate than the student that is reported.

    Two shares ``p`` and ``q`` of the same n images differ by chance with a standard error of at most about
    ``sqrt((p (1 - p) + q (1 - q)) / n)``, since both networks tend to fail on the same images; the difference must
    exceed three of them. Nothing is said where the student is an average, which these networks are not made of.
    """
    metrics = result.metrics
    if settings.ema_decay is not None:
        return []
    top1, num_samples = metrics["top1"], metrics["num_samples"]
    return [
        f"the {key.removesuffix(SUFFIX)} network of the method has {value:.1%} top-1 on {num_samples} images, clearly "
        f"below the student's {top1:.1%} (by more than three standard errors): what it passes on is worse than what "
        "the student knows"
        for key, value in metrics.items()
        if key.endswith(SUFFIX) and top1 - value > STANDARD_ERRORS * _standard_error(top1, value, num_samples)
    ]


def _standard_error(one: float, other: float, num_samples: int) -> float:
    """Of the difference of two shares."""
    return math.sqrt((one * (1 - one) + other * (1 - other)) / num_samples)
