"""What a run has come to: the part of its state that is not tensors, and what it hands back at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Self

from crossdistill.engine.progress import Stopwatch
from crossdistill.settings import TrainSettings

DEFAULT_EPOCHS = 100


@dataclass(slots=True)
class Record:
    """Where a run is and what was measured on the way; saved in each checkpoint as plain data."""

    step: int = 0
    clock: Stopwatch = field(default_factory=Stopwatch)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    warnings: dict[str, str] = field(default_factory=dict)

    def warn(self, name: str, text: str) -> bool:
        """Keep a concern for the end of the run; whether it is a new one."""
        is_new = name not in self.warnings
        self.warnings.setdefault(name, text)
        return is_new

    @property
    def evaluated(self) -> set[int]:
        """Steps with an evaluation."""
        return {line["step"] for line in self.history}

    def note(self, metrics: dict[str, Any], *, epoch: int, select_best: bool) -> bool:
        """File an evaluation of this step; whether it is the new best, if that is wanted (of equals the first is)."""
        by_class = ("class_correct", "class_total")
        line = {"step": self.step, "epoch": epoch, **{k: v for k, v in metrics.items() if k not in by_class}}
        self.history.append(line)
        self.metrics = metrics
        if not select_best or (self.best and metrics["top1"] <= self.best["metrics"]["top1"]):
            return False
        self.best = {"step": self.step, "epoch": epoch, "metrics": metrics}
        return True

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        clock = {"seconds": self.clock.seconds, "waited": self.clock.waited, "images": self.clock.images}
        return {f.name: clock if f.name == "clock" else getattr(self, f.name) for f in fields(self)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """The record that :meth:`state_dict` gave."""
        return cls(**{**state, "clock": Stopwatch(**state["clock"])})


@dataclass(frozen=True, slots=True)
class FitResult:
    """A finished run; the student then holds the weights that ``metrics`` describe.

    ``metrics`` are those of the last epoch, or of the best one with ``select="best"`` (then ``best_epoch``, counted
    from 1, says which). ``history`` has one entry an evaluation. ``seconds`` is time in training steps, evaluation
    and checkpoints not counted; ``data_wait_share`` the part of it spent waiting for batches. ``warnings`` are concerns
    that the method's figures gave.
    """

    metrics: dict[str, Any]
    best_epoch: int | None
    history: list[dict[str, Any]]
    seconds: float
    images_per_second: float
    data_wait_share: float
    steps: int
    warnings: tuple[str, ...] = ()


def total_steps(settings: TrainSettings, steps_per_epoch: int) -> int:
    """Length of the run in optimiser steps: ``steps``, or ``epochs`` (100 where neither is set)."""
    return settings.steps or (settings.epochs or DEFAULT_EPOCHS) * steps_per_epoch


def epoch_of(step: int, steps_per_epoch: int) -> int:
    """The epoch, counted from 1, that the last of ``step`` finished steps belongs to."""
    return math.ceil(step / steps_per_epoch)


def fit_result(record: Record) -> FitResult:
    """The result of a run that reached its end."""
    return FitResult(
        metrics=record.metrics if record.best is None else record.best["metrics"],
        best_epoch=None if record.best is None else record.best["epoch"],
        history=record.history,
        seconds=record.clock.seconds,
        steps=record.step,
        warnings=tuple(record.warnings.values()),
        **record.clock.rates(),
    )
