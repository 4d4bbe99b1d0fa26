"""How far a run is and how fast: the clock, and three ways of showing it (bar, lines, nothing)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TextIO, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from crossdistill.engine.phases import phase

T = TypeVar("T")


@dataclass(slots=True)
class Stopwatch:
    """Time spent in training steps, and the part of it that was spent waiting for the next batch, in seconds."""

    seconds: float = 0.0
    waited: float = 0.0
    images: int = 0
    _mark: float = field(default=0.0, init=False)
    _lap: tuple[float, float, int] = field(default=(0.0, 0.0, 0), init=False)

    def __post_init__(self) -> None:
        self._lap = (self.seconds, self.waited, self.images)

    def steps(self, batches: Iterator[T]) -> Iterator[T]:
        """Pass batches on, timing both how long they take to come and how long the caller works on each."""
        self._mark = time.perf_counter()
        while True:
            self._tick()
            with phase("data"):
                batch = next(batches, None)
            self.waited += self._tick()
            if batch is None:
                return
            yield batch

    def lap(self) -> dict[str, float]:
        """Images per second and share of time waited since the last lap; called while working on a batch."""
        self._tick()
        seconds, waited, images = self._lap
        self._lap = (self.seconds, self.waited, self.images)
        return _rates(self.seconds - seconds, self.waited - waited, self.images - images)

    def rates(self) -> dict[str, float]:
        """The same over the whole run."""
        return _rates(self.seconds, self.waited, self.images)

    def _tick(self) -> float:
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        self.seconds += passed
        return passed


def _rates(seconds: float, waited: float, images: int) -> dict[str, float]:
    if seconds <= 0:
        return {"images_per_second": 0.0, "data_wait_share": 0.0}
    return {"images_per_second": images / seconds, "data_wait_share": min(waited / seconds, 1.0)}


class Reporter(Protocol):
    """What the loop tells whoever watches. Lines are those of ``metrics.jsonl``."""

    def begin(self, *, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """The run starts or goes on at ``step``."""
        ...

    def stepped(self, step: int) -> None:
        """A step is finished."""
        ...

    def train(self, line: dict[str, Any]) -> None:
        """Losses and rates since the last such line."""
        ...

    def evaluated(self, line: dict[str, Any]) -> None:
        """Figures of an evaluation."""
        ...

    def message(self, text: str) -> None:
        """Something worth saying once."""
        ...

    def end(self) -> None:
        """The run ended, whichever way."""
        ...


class Quiet:
    """Shows nothing."""

    def begin(self, *, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Nothing."""

    def stepped(self, step: int) -> None:
        """Nothing."""

    def train(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def evaluated(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines(Quiet):
    """One line an epoch, for files and pipes, but for the last none sooner than ``min_seconds`` after another.

    In a long epoch there is a line every ``max_seconds``.
    """

    def __init__(self, stream: TextIO | None = None, *, min_seconds: float = 2.0, max_seconds: float = 60.0) -> None:
        self._stream, self._min_seconds, self._max_seconds = stream or sys.stderr, min_seconds, max_seconds
        self._total = self._steps_per_epoch = self._first = 0
        self._started = self._printed = 0.0
        self._shown_step = -1

    def begin(self, *, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Note where the run starts, for the estimate of what is left."""
        self._first, self._total, self._steps_per_epoch = step, total_steps, steps_per_epoch
        self._started = time.monotonic()

    def train(self, line: dict[str, Any]) -> None:
        """Print at the end of each epoch, which is always logged."""
        step, now = line["step"], time.monotonic()
        waited = now - max(self._printed, self._started)
        due = waited >= (self._max_seconds if step % self._steps_per_epoch else self._min_seconds)
        if step != self._total and not due:
            return
        self._printed, self._shown_step = now, step
        left = (time.monotonic() - self._started) / (step - self._first) * (self._total - step)
        epochs = f"{line['epoch']}/{-(-self._total // self._steps_per_epoch)}"
        self.message(
            f"epoch {epochs} | step {step}/{self._total} | {losses_text(line)}, {speed_text(line)} | {left:.0f} s left"
        )

    def evaluated(self, line: dict[str, Any]) -> None:
        """Print beneath the line of its epoch."""
        if line["step"] == self._shown_step:
            self.message(f"epoch {line['epoch']} | {evaluation_text(line)}")

    def message(self, text: str) -> None:
        """Print at once."""
        print(text, file=self._stream, flush=True)


class _BarAndLines(Progress):
    """A bar with lines of text beneath it, each cut off at the terminal's edge."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        self.lines: dict[str, str] = {}
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterator[RenderableType]:
        """The bar, then the lines."""
        yield self.make_tasks_table(self.tasks)
        for line in self.lines.values():
            yield Text(line, no_wrap=True, overflow="ellipsis")


class Bar(Quiet):
    """A bar with the time left; beneath it speed, data-wait share and learning rate, losses, and accuracy."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = _BarAndLines(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("passed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console or Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=None, start=False)

    def begin(self, *, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Show the bar."""
        self._progress.update(self._task, total=total_steps, completed=step)
        self._progress.start_task(self._task)
        self._progress.start()

    def stepped(self, step: int) -> None:
        """Advance."""
        self._progress.update(self._task, completed=step)

    def train(self, line: dict[str, Any]) -> None:
        """Show the losses and the speed."""
        self._progress.lines |= {"speed": speed_text(line), "losses": losses_text(line)}

    def evaluated(self, line: dict[str, Any]) -> None:
        """Show the figures until the next ones."""
        self._progress.lines["evaluation"] = f"epoch {line['epoch']}: {evaluation_text(line)}"

    def message(self, text: str) -> None:
        """Print above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


def reporter(mode: Literal["auto", "bar", "lines", "quiet"] = "auto") -> Reporter:
    """The reporter of that name; ``auto`` is a bar on a terminal and lines elsewhere. All write to standard error."""
    if mode == "quiet":
        return Quiet()
    if mode == "bar" or (mode == "auto" and sys.stderr.isatty()):
        return Bar()
    return Lines()


def losses_text(line: dict[str, Any]) -> str:
    """The losses by name, after their sum where there are several."""
    losses = line["losses"]
    named = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
    return named if len(losses) == 1 else f"loss {sum(losses.values()):.3g} ({named})"


def speed_text(line: dict[str, Any]) -> str:
    """Learning rate and speed in a few words."""
    speed = f"{line['images_per_second']:.0f} images/s, {line['data_wait_share']:.0%} waiting for data"
    return f"lr {line['lr']:.2g}, {speed}"


def evaluation_text(line: dict[str, Any]) -> str:
    """Accuracy and loss in a few words."""
    if "top1" not in line:
        return "no labelled image to be measured on"
    top5 = f", top-5 {line['top5']:.1%}" if "top5" in line else ""
    others = "".join(f", {key.removesuffix('_top1')} {line[key]:.1%}" for key in line if key.endswith("_top1"))
    loss = f", loss {line['loss']:.3g}" if "loss" in line else ""
    return f"top-1 {line['top1']:.1%}{top5}{loss}{others}"
