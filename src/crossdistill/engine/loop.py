"""The loop: the teacher gives signals, the student answers, and one optimiser trains student and method together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.contracts import Batch, Method, Moment, Outputs, Teacher
from crossdistill.engine.compiled import begin_replay, compiled_teacher
from crossdistill.engine.devices import connect
from crossdistill.engine.distribute import loss_weights
from crossdistill.engine.exam import Exam, examine
from crossdistill.engine.following import begin_step, read_figures, state_of, take_up
from crossdistill.engine.hold import hold
from crossdistill.engine.interrupt import StopSignal
from crossdistill.engine.keeper import Keeper, identity
from crossdistill.engine.learner import HARD_LABELS, TrainLoader
from crossdistill.engine.ledger import Ledger, check_alike, check_finite, not_finite
from crossdistill.engine.log import MetricsLog
from crossdistill.engine.measured import measured
from crossdistill.engine.optimize import LearningRate
from crossdistill.engine.phases import phase
from crossdistill.engine.progress import Quiet, Reporter
from crossdistill.engine.record import FitResult, Record, epoch_of, fit_result, total_steps
from crossdistill.engine.seeding import deterministic, environment, seed_step
from crossdistill.errors import InputError, Interrupted
from crossdistill.settings import TrainSettings


def fit(
    student: nn.Module,
    method: Method,
    teacher: Teacher | None,
    train_loader: TrainLoader,
    eval_loader: Iterable[Batch] | Exam | None,
    *,
    settings: TrainSettings,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    fingerprint: dict[str, Any] | None = None,
    reporter: Reporter | None = None,
    max_steps: int | None = None,
) -> FitResult:
    """Train ``student`` with ``method``; it is changed in place and ends in eval mode with the chosen weights.

    With ``out``, logs and checkpoints are written there, and a run found there is resumed where it stopped.

    Args:
        student: ``images -> Outputs``; method: its losses; teacher: ``None`` where the method needs no signals.
        eval_loader: what is measured every ``eval_every`` epochs, and selected on with ``select="best"``: labelled
            images, or an :class:`~crossdistill.engine.exam.Exam` of another kind.
        fingerprint: plain data that a resume must be given again, beside settings, seed, student and teacher.
        max_steps: a trial: stop after so many steps and evaluate on two batches; the schedule stays as it is.

    Raises:
        InputError: losses that are not finite, a resume with other settings, a full disk, a missing device, …
        Interrupted: SIGINT or SIGTERM came; the step was finished and a checkpoint written.
    """
    if method.needs and teacher is None:
        raise InputError(f"method {type(method).__name__} without a teacher", "a teacher", "give one with --teacher")
    if settings.select == "best" and eval_loader is None:
        raise InputError("select=best without evaluation data", "a loader to select on", "give one, or select=last")
    trainer = Trainer(student, method, teacher, train_loader, eval_loader, settings, seed, device, max_steps)
    trainer.resume(out, fingerprint or {})
    return trainer.run(reporter or Quiet())


class Trainer:
    """One run, in the order in which it happens: resume, steps, end of epoch, finish."""

    def __init__(
        self,
        student: nn.Module,
        method: Method,
        teacher: Teacher | None,
        train_loader: TrainLoader,
        eval_loader: Iterable[Batch] | Exam | None,
        settings: TrainSettings,
        seed: int,
        device: str,
        max_steps: int | None,
    ) -> None:
        self.accelerator = connect(device, settings.precision)
        self.teacher, self.train_loader, self.eval_loader = teacher, train_loader, eval_loader
        self.settings, self.seed, self.is_trial = settings, seed, max_steps is not None
        self.student, self.method = student, method
        self.weights = hold(student, method, teacher, train_loader, settings, self.accelerator)
        self.steps_per_epoch = train_loader.steps_per_epoch
        self.total = total = total_steps(settings, self.steps_per_epoch)
        self.end = min(total, max_steps or total)
        optimizer = self.weights.optimizer
        self.rate = LearningRate(optimizer, settings, total_steps=total, steps_per_epoch=self.steps_per_epoch)
        self.record, self.ledger = Record(), Ledger(self.accelerator, settings)
        self.best_weights: dict[str, Tensor] = {}

    def resume(self, out: Path | None, fingerprint: dict[str, Any]) -> None:
        """Go on from the newest checkpoint below ``out``, if there is one."""
        given = identity(self.student, self.method, self.teacher, self.settings, self.seed, self.steps_per_epoch)
        self.out = out
        self.keeper = Keeper(out, given | fingerprint, environment(self.accelerator, self.settings))
        best = self.keeper.restore(self.load_state_dict)
        if best is not None:
            self.best_weights = best["student" if self.settings.ema_decay is None else "ema"]

    def run(self, reporter: Reporter) -> FitResult:
        """Train from where the record stands to the end."""
        is_main, record = self.accelerator.is_main_process, self.record
        self.reporter = reporter if is_main else Quiet()
        self.log = MetricsLog(self.out, step=record.step, evaluated=record.evaluated) if is_main and self.out else None
        self.reporter.begin(step=record.step, total_steps=self.end, steps_per_epoch=self.steps_per_epoch)
        try:
            compile_teacher = compiled_teacher(self.teacher, self.settings)
            with StopSignal() as self.stop, deterministic(self.accelerator.device), compile_teacher:
                check_alike(self.method, self.method.alike())
                self.close_epoch()  # an interrupted run may have stopped right after the last step of an epoch
                while record.step < self.end:
                    self.train_epoch()
                    self.close_epoch()
            if self.stop.requested:  # in the last evaluation: this run is complete, what follows it is not wanted
                raise Interrupted("interrupted after the last step; everything is saved")
        finally:
            self.reporter.end()
            if self.log:
                self.log.close()
        self.weights.finish(self.best_weights)
        return fit_result(record)

    def train_epoch(self) -> None:
        """The steps that are left of the current epoch."""
        epoch, done = divmod(self.record.step, self.steps_per_epoch)
        for batches in self.record.clock.steps(self.train_loader.epoch(epoch, start_step=done)):
            self.train_step(batches)
            self.reporter.stepped(self.record.step)
            step, alone = self.record.step, self.accelerator.num_processes == 1
            is_last = step == self.end or step % self.steps_per_epoch == 0
            # Several processes can only stop together; they agree whenever they read the losses anyway.
            if is_last or step % self.settings.log_every == 0 or (alone and self.stop.requested):
                self.read_losses()
            if is_last:
                return
        raise RuntimeError(f"the loader ended epoch {epoch} before its {self.steps_per_epoch} steps")

    def train_step(self, batches: list[Batch]) -> None:
        """One step of the optimiser on all micro-batches, which together equal one large batch."""
        seed_step(self.seed, self.record.step, self.accelerator.process_index)
        self.rate.set(self.record.step)
        begin_step(self.method, self.teacher, self.student, Moment(self.record.step, self.total, len(batches)))
        totals: dict[str, Tensor] = {}
        weights = self.weights
        gathered, together = weights.learner.gather, weights.learner.together
        shares = loss_weights(batches, self.accelerator, gathered=gathered, together=together)
        for index, (batch, (share, labelled_share)) in enumerate(zip(batches, shares, strict=True), start=1):
            if self.settings.cuda_graphs:
                begin_replay(weights.learner, is_second=index == 2)
            with nullcontext() if index == len(batches) else self.accelerator.no_sync(weights.model):
                losses = self.losses(batch)
                losses = {k: v * (labelled_share if k == HARD_LABELS else share) for k, v in losses.items()}
                with phase("backward"):
                    self.accelerator.backward(torch.stack(list(losses.values())).sum())
            totals = {name: totals.get(name, 0) + loss.detach() for name, loss in losses.items()}
        self.record.step += 1
        self.record.clock.images += sum(map(len, batches)) * self.accelerator.num_processes
        with phase("optimizer"):
            weights.update(self.record.step)
        self.ledger.add(self.record.step, totals)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of one micro-batch; what of the teacher's answer the backward pass needs not is free by then."""
        with phase("teacher"):
            batch = batch.to(self.accelerator.device, channels_last=self.settings.channels_last)
            answer = self.signals(batch)
        losses: dict[str, Tensor] = self.weights.model(batch, answer)
        return losses

    def signals(self, batch: Batch) -> Outputs:
        """What the teacher says of this batch, if the method asks for anything."""
        if self.teacher is None or not self.method.needs:
            return Outputs()
        with torch.no_grad(), self.accelerator.autocast():
            return self.teacher.signals(batch)

    def read_losses(self) -> None:
        """Bring the losses since the last reading to the host, check and log them, and stop if that is asked for."""
        step = self.record.step
        losses, stop = self.ledger.read(stop=self.stop.requested)
        line = {"kind": "train", "step": step, "epoch": epoch_of(step, self.steps_per_epoch), "lr": self.rate.current}
        line |= {"losses": losses, **self.record.clock.lap()}
        line |= read_figures(self.method, self.accelerator, self.record, self.reporter)
        self.note(line, self.reporter.train)
        if stop:
            saved = self.save()
            kept = f"saved in {saved}; go on with --resume" if saved else "nothing saved"
            raise Interrupted(f"interrupted after step {step}; {kept}")

    def close_epoch(self) -> None:
        """Evaluate and write a checkpoint where the end of an epoch makes them due."""
        step, is_last = self.record.step, self.record.step == self.end
        epoch, rest = divmod(step, self.steps_per_epoch)
        if step == 0 or (rest and not is_last) or step in self.record.evaluated:
            return
        check_finite(self.weights.learner, step, self.settings)
        check_alike(self.method, self.method.alike())
        improved = (is_last or epoch % self.settings.eval_every == 0) and self.evaluate()
        if is_last or improved or epoch % self.settings.checkpoint_every == 0:
            self.save()

    def evaluate(self) -> bool:
        """Measure the weights that would be exported now; whether they are the best so far, if best is wanted."""
        if self.eval_loader is None:
            return False
        how: dict[str, Any] = {"accelerator": self.accelerator, "channels_last": self.settings.channels_last}
        how["max_batches"] = 2 if self.is_trial else None
        others = measured(self.weights, self.eval_loader, **how)
        with self.weights.exported() as student:
            metrics = examine(student, self.eval_loader, **how) | others
            if not math.isfinite(metrics.get("loss", 0.0)):
                raise not_finite(f"evaluation loss {metrics['loss']} after step {self.record.step}", self.settings)
            epoch = epoch_of(self.record.step, self.steps_per_epoch)
            improved = self.record.note(metrics, epoch=epoch, select_best=self.settings.select == "best")
            if improved:
                self.best_weights = {k: v.detach().cpu().clone() for k, v in student.state_dict().items()}
        self.note({"kind": "eval", **self.record.history[-1]}, self.reporter.evaluated)
        return improved

    def note(self, line: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
        """Show a line and log it."""
        show(line)
        if self.log:
            self.log.write(line)

    def save(self) -> Path | None:
        """Write a checkpoint, of sound weights only."""
        check_finite(self.weights.learner, self.record.step, self.settings)
        state = {**self.weights.state_dict(), **state_of(self.teacher), "record": self.record.state_dict()}
        return self.keeper.save(state, self.record, epoch=self.record.step // self.steps_per_epoch)

    def load_state_dict(self, state: dict[str, Any]) -> Record:
        """Take up what :meth:`save` wrote."""
        self.weights.load_state_dict(state)
        take_up(self.teacher, state)
        self.record = Record.of(state["record"])
        return self.record
