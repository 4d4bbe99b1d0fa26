"""Between a trainer and its checkpoints: when one is due, what a resume must share with it, and who writes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from crossdistill.contracts import Method, Teacher
from crossdistill.engine import checkpoint
from crossdistill.engine.record import Record
from crossdistill.engine.together import on_main
from crossdistill.errors import InputError
from crossdistill.settings import TrainSettings

FOLDER = "checkpoints"


def identity(
    student: nn.Module,
    method: Method,
    teacher: Teacher | None,
    settings: TrainSettings,
    seed: int,
    steps_per_epoch: int,
) -> dict[str, Any]:
    """What makes two runs the same run, as plain data; the teacher is named by the hash of its weights."""
    spec = getattr(student, "spec", None)
    return {
        "student": getattr(spec, "name", type(student).__name__),
        "method": type(method).__name__,
        "teacher": None if teacher is None else teacher.fingerprint(),
        "train": settings.model_dump(mode="json"),
        "seed": seed,
        "steps_per_epoch": steps_per_epoch,
    }


class Keeper:
    """Keeps the checkpoints of one run, written by the main process; without a folder it keeps nothing.

    Args:
        out: the run folder, or ``None``.
        fingerprint: what a resume must be given again.
        environment: what a resume must share to continue bit for bit.
    """

    def __init__(self, out: Path | None, fingerprint: dict[str, Any], environment: dict[str, Any]) -> None:
        self._folder = out / FOLDER if out is not None else None
        self._fingerprint, self._environment = fingerprint, environment
        self._saved: tuple[int, int] | None = None
        self._newest: Path | None = None

    def save(self, state: dict[str, Any], record: Record, *, epoch: int) -> Path | None:
        """Write a checkpoint, unless the newest one says the same; its folder."""
        if self._folder is None:
            return None
        mark = (record.step, len(record.history))
        if mark != self._saved:
            self._newest = on_main(
                partial(
                    checkpoint.write,
                    self._folder,
                    state,
                    step=record.step,
                    epoch=epoch,
                    fingerprint=self._fingerprint,
                    environment=self._environment,
                    keep_steps=[record.best["step"]] if record.best else [],
                )
            )
        self._saved = mark
        return self._newest

    def restore(self, load: Callable[[dict[str, Any]], Record]) -> dict[str, Any] | None:
        """Hand the newest whole checkpoint to ``load``, if there is one, and return the state at the best step, if any.

        Raises:
            InputError: it belongs to another run, or does not fit.
        """
        if self._folder is None:
            return None
        on_main(partial(checkpoint.remove_partial, self._folder))
        found = checkpoint.latest(self._folder)
        if found is None:
            return None
        checkpoint.check_same(found.path, found.manifest["fingerprint"], self._fingerprint)
        checkpoint.warn_of_changes(found.manifest["environment"], self._environment)
        record = self._fitted(found, load)
        self._saved, self._newest = (record.step, len(record.history)), found.path
        if record.best is None:
            return None
        return found.state if record.best["step"] == record.step else self._best(record.best["step"])

    def _fitted(self, found: checkpoint.Checkpoint, load: Callable[[dict[str, Any]], Record]) -> Record:
        try:
            return load(found.state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"checkpoint {found.path}, which does not fit: {str(error).splitlines()[-1].strip()}",
                "the student and method that it was written with",
                "give the same again, or start anew in another folder",
            ) from error

    def _best(self, step: int) -> dict[str, Any]:
        assert self._folder is not None
        path = checkpoint.at_step(self._folder, step)
        try:
            if path is None:
                raise checkpoint.BrokenCheckpoint("it is not there")
            return checkpoint.load(path).state
        except checkpoint.BrokenCheckpoint as error:
            raise InputError(
                f"{self._folder}, whose best checkpoint (step {step}) cannot be read: {error}",
                "the checkpoint that select=best chose so far",
                "restore it from a backup, or start anew",
            ) from error
