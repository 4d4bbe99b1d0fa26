"""The loop's own steps, one at a time: timed without a profiler, profiled, and in turn with other ways to take them."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from crossdistill.analysis.turns import order_of
from crossdistill.contracts import Batch, Method, Outputs, Signal, Teacher
from crossdistill.engine.loop import Trainer
from crossdistill.engine.phases import PREFIX, phase
from crossdistill.engine.progress import Quiet
from crossdistill.errors import InputError, Interrupted
from crossdistill.models import StagedModel

WINDOW = f"{PREFIX}steps"
"""The range around all profiled steps."""

NUM_HELD = 4
"""Steps whose batches are kept for :func:`in_turn`, where nobody waits for data."""

_HIGH_WATER, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Timed:
    """Steps as they follow each other in training: milliseconds of each, and what they add up to.

    ``peak_bytes`` is what the device allocated at its peak, or, on a CPU, what the process held in memory.
    """

    ms: tuple[float, ...]
    images_per_second: float
    data_wait_share: float
    peak_bytes: int


class Stepper(Trainer):
    """A training whose steps are taken when asked for, in the set-up in which its own loop takes them."""

    held: list[list[Batch]]
    holds: bool

    def measure(self, what: Callable[[], None]) -> None:
        """Call ``what`` where the loop would begin its first epoch: networks compiled, signals held back, and so on."""
        self._what, self.held, self.holds = what, [], True
        self._num_epochs = math.ceil(self.end / self.steps_per_epoch)
        self.resume(None, {})
        self.run(Quiet())

    def train_epoch(self) -> None:
        """In the place of the first epoch, what is to be measured; then the training ends."""
        self._what()
        self.end = self.record.step

    def close_epoch(self) -> None:
        """Nothing is evaluated and nothing saved."""

    def steps(self) -> Generator[None]:
        """The loop's steps, each taken when the next value is asked for; after the last epoch comes the first again."""
        while True:
            epoch, done = divmod(self.record.step, self.steps_per_epoch)
            left = self.train_loader.epoch(epoch % self._num_epochs, start_step=done)
            for batches in self.record.clock.steps(left):
                self.train_step(batches)
                is_last = self.record.step % self.steps_per_epoch == 0
                if is_last or self.record.step % self.settings.log_every == 0:
                    self.read_losses()
                self.check_stop()
                if self.holds:
                    self.held = [*self.held, batches][-NUM_HELD:]
                yield
                if is_last:
                    break

    def check_stop(self) -> None:
        """Raise :class:`Interrupted` where a signal has asked for the end."""
        if self.stop.requested:
            raise Interrupted("interrupted while measuring; nothing was written")


def timed(trainer: Stepper, steps: Iterator[None], num_steps: int) -> Timed:
    """Time steps without a profiler and without waiting for the device between them.

    Their batches are not kept for later, so that the peak of memory is that of training; nor are those before them.
    """
    trainer.held, trainer.holds = [], False
    device, clock = trainer.accelerator.device, trainer.record.clock
    reset_peak(device)
    synchronize(device)
    before, marks = (clock.seconds, clock.waited, clock.images), [mark(device)]
    begin = time.perf_counter()
    for _ in range(num_steps):
        next(steps)
        marks.append(mark(device))
    synchronize(device)
    seconds = time.perf_counter() - begin
    waited, images = clock.waited - before[1], clock.images - before[2]
    trainer.holds = True
    ms = tuple(between(one, other) for one, other in itertools.pairwise(marks))
    return Timed(ms, images / seconds, min(1.0, waited / seconds), peak_bytes(device))


def profiled(
    trainer: Stepper, steps: Iterator[None], num_steps: int, *, split_method: bool
) -> tuple[float, dict[str, Any]]:
    """Profile steps after one that is thrown away: milliseconds a step by the host's clock, and the trace.

    Args:
        trainer: whose steps these are.
        steps: of :meth:`Stepper.steps`.
        num_steps: how many are kept.
        split_method: tell the method's modules from the rest of it (:func:`bridges_told_apart`).

    Raises:
        InputError: the trace cannot be written to the system's folder for temporary files.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it prints to standard error when it starts and stops
    device = trainer.accelerator.device
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    live = [trainer.student, *(trainer.teacher.modules() if isinstance(trainer.teacher, nn.Module) else ())]
    with (
        bridges_told_apart(trainer.method, live if split_method else None),
        profile(activities=activities, schedule=schedule(wait=0, warmup=1, active=1)) as profiler,
    ):
        next(steps)
        synchronize(device)
        profiler.step()
        begin = time.perf_counter()
        with record_function(WINDOW):
            for _ in range(num_steps):
                next(steps)
            synchronize(device)
        seconds = time.perf_counter() - begin
    return 1000 * seconds / num_steps, _trace(profiler)


def _trace(profiler: profile) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        try:
            trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # the profiler does not say so when the disk is full
            raise InputError(
                f"a profile that cannot be read back from {folder}: {error}",
                "room for it in the system's folder for temporary files",
                "make room there, or name another folder in the variable TMPDIR",
            ) from error
    return trace


@contextmanager
def bridges_told_apart(method: Method, live: Sequence[nn.Module] | None) -> Iterator[None]:
    """While the method compares, a range ``bridges`` around what its modules compute, and the networks it is made of.

    Modules within modules count once, with the outermost. A method that is made of methods is looked into. Networks
    that a method only borrows (fused ones) are met where they go on from a stage.

    Args:
        method: what student and teacher are compared by.
        live: student and teacher with all their modules; ``None``: do nothing.
    """
    if live is None:
        yield
        return
    inside = _Inside()
    handles = []
    for module in method.modules():
        opens, closes = (inside.enter, inside.leave) if module is method else (inside.open, inside.close)
        if module is method or not isinstance(module, Method):
            handles.append(module.register_forward_pre_hook(opens))
            handles.append(module.register_forward_hook(closes, always_call=True))
    borrowed = [one for one in live if isinstance(one, StagedModel)]
    for one in borrowed:
        one.__dict__["forward_from"] = inside.around(one.forward_from)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for one in borrowed:
            one.__dict__.pop("forward_from", None)


class _Inside:
    """Whether the method is at work, how deep in its modules, and the range that is open for them."""

    def __init__(self) -> None:
        self.depth, self.in_method = 0, False
        self.range: Any = None

    def enter(self, *_: Any) -> None:
        self.in_method = True

    def leave(self, *_: Any) -> None:
        self.in_method = False

    def open(self, *_: Any) -> None:
        if not self.in_method:
            return
        if self.depth == 0:
            self.range = phase("bridges")
            self.range.__enter__()
        self.depth += 1

    def close(self, *_: Any) -> None:
        if not self.in_method:
            return
        self.depth -= 1
        if self.depth == 0:
            self.range.__exit__(None, None, None)

    def around(self, function: Callable[..., Outputs]) -> Callable[..., Outputs]:
        def run(*given: Any) -> Outputs:
            self.open()
            try:
                return function(*given)
            finally:
                self.close()

        return run


class AtHand:
    """A teacher whose answers are there already, as those of a store are, but without looking them up."""

    def __init__(self, teacher: Teacher, needs: frozenset[Signal]) -> None:
        self.teacher, self.needs = teacher, needs
        self.spec, self.holds = teacher.spec, teacher.holds
        self._by_step: dict[int, list[Outputs]] = {}
        self._next: Iterator[Outputs] = iter(())

    def serve(self, step: int) -> None:
        """The next answers asked for are those of this step."""
        self._next = iter(self._by_step[step])

    def learn(self, step: int, answers: list[Outputs]) -> None:
        """Take up the answers of a step's micro-batches."""
        self._by_step[step] = answers

    def signals(self, batch: Batch) -> Outputs:
        """The answer of this step's next micro-batch."""
        return next(self._next)

    def fingerprint(self) -> str:
        """That of the teacher."""
        return self.teacher.fingerprint()


def at_hand(trainer: Stepper) -> AtHand:
    """The teacher's answers to the held batches."""
    assert trainer.teacher is not None
    known = AtHand(trainer.teacher, trainer.method.needs)
    device, channels_last = trainer.accelerator.device, trainer.settings.channels_last
    for index, batches in enumerate(trainer.held):
        moved = [batch.to(device, channels_last=channels_last) for batch in batches]
        answers = [trainer.signals(batch).only(known.needs) for batch in moved]
        # Tensors made in inference mode cannot be kept for gradients; a copy made outside it can.
        known.learn(index, [_cloned(answer) for answer in answers])
    return known


def _cloned(outputs: Outputs) -> Outputs:
    return Outputs(
        logits=None if outputs.logits is None else outputs.logits.clone(),
        embedding=None if outputs.embedding is None else outputs.embedding.clone(),
        members=None if outputs.members is None else tuple(map(_cloned, outputs.members)),
    )


def in_turn(
    ways: Mapping[str, Callable[[int], None]], rounds: int, device: torch.device, *, num_held: int
) -> dict[str, list[float]]:
    """Milliseconds of a step each way: every round takes each once, in changing order.

    Args:
        ways: name -> a function that takes the step on held batch number 0, 1, …; all take the same ones in a round.
        rounds: how many.
        device: waited for before and after; on CUDA a turn is several steps, so that the host can run ahead as it does.
        num_held: how many batches there are.
    """
    names = list(ways)
    taken: dict[str, list[float]] = {name: [] for name in names}
    a_turn = NUM_HELD if device.type == "cuda" else 1
    for number in range(1 + rounds):  # the first round is not counted
        for name in (names[at] for at in order_of(number, len(names))):
            synchronize(device)
            begin = time.perf_counter()
            for index in range(a_turn):
                ways[name]((number * a_turn + index) % num_held)
            synchronize(device)
            if number:
                taken[name].append(1000 * (time.perf_counter() - begin) / a_turn)
    return taken


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> Any:
    """A moment: of the device where there is one, so that nobody waits for it, else of the host."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def between(one: Any, other: Any) -> float:
    """Milliseconds between two moments, once the device has reached the later one."""
    return float(one.elapsed_time(other)) if hasattr(one, "elapsed_time") else 1000 * (other - one)


def reset_peak(device: torch.device) -> None:
    """Begin to look for the peak of memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():  # Linux forgets the peak of the process
        with suppress(OSError):  # some containers do not let it: then the peak is that since the process began
            _RESET.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Most memory at one time since :func:`reset_peak` (where the system cannot forget: since the process began)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _HIGH_WATER.exists():
        lines = _HIGH_WATER.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
