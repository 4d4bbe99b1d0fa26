"""The loop that trains every student, and what it stands on: devices, checkpoints, progress, logs."""

from crossdistill.engine.class_weights import weights_for
from crossdistill.engine.devices import connect, process
from crossdistill.engine.evaluate import evaluate
from crossdistill.engine.loop import fit
from crossdistill.engine.measured import below_student
from crossdistill.engine.optimize import check_optimizer
from crossdistill.engine.progress import Reporter, reporter
from crossdistill.engine.record import DEFAULT_EPOCHS, FitResult, total_steps
from crossdistill.engine.together import from_all, on_main

__all__ = [
    "DEFAULT_EPOCHS",
    "FitResult",
    "Reporter",
    "below_student",
    "check_optimizer",
    "connect",
    "evaluate",
    "fit",
    "from_all",
    "on_main",
    "process",
    "reporter",
    "total_steps",
    "weights_for",
]
