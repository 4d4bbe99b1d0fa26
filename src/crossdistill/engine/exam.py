"""How a run is measured while it trains: accuracy on labelled images, or whatever else an exam asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator
from torch import nn

from crossdistill.contracts import Batch
from crossdistill.engine.evaluate import evaluate


@runtime_checkable
class Exam(Protocol):
    """Measures a student in its own way, such as by its neighbours where there is no classifier yet."""

    def examine(
        self, student: nn.Module, *, accelerator: Accelerator, channels_last: bool, max_batches: int | None
    ) -> dict[str, Any]:
        """Figures by name; ``top1``, if there, is what the best epoch is chosen by. All processes call it together."""
        ...


def examine(student: nn.Module, exam: Iterable[Batch] | Exam, **how: Any) -> dict[str, Any]:
    """What an exam says of the student, or its accuracy on labelled images."""
    return exam.examine(student, **how) if isinstance(exam, Exam) else evaluate(student, exam, **how)
