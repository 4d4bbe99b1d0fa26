"""The loop that trains every student, and what it stands on: devices, checkpoints, progress, logs."""

from crossdistill.engine.devices import connect, process
from crossdistill.engine.evaluate import evaluate
from crossdistill.engine.loop import fit
from crossdistill.engine.progress import Reporter, reporter
from crossdistill.engine.record import FitResult, total_steps

__all__ = [
    "FitResult",
    "Reporter",
    "connect",
    "evaluate",
    "fit",
    "process",
    "reporter",
    "total_steps",
]
