"""Where the time of a training step goes: the user's own setting, its real loop, and figures as plain data."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from crossdistill.analysis.breakdown import breakdown
from crossdistill.analysis.environment import environment
from crossdistill.contracts import Signal
from crossdistill.engine import connect, on_main, reporter
from crossdistill.engine.phases import PHASES, PREFIX
from crossdistill.errors import InputError
from crossdistill.files import write_bytes, write_text, writing
from crossdistill.report.breakdown_page import breakdown_page
from crossdistill.runs.bench_steps import WINDOW, Stepper, Timed, at_hand, in_turn, profiled, timed
from crossdistill.runs.compose import Parts, compose
from crossdistill.runs.objective import build_method
from crossdistill.runs.results import command_line
from crossdistill.runs.single import try_out
from crossdistill.runs.stores import store_of
from crossdistill.settings import Settings
from crossdistill.store import Store

PAGE, FIGURES, TRACE, LARGE = "breakdown.html", "breakdown.json", "trace.json", "trace.json.gz"
PARTS = ("data", "teacher", "student", "bridges", "loss", "backward", "optimizer")
MOST_PROFILED = 5
"""A profile of more steps says nothing new and is slow to open."""
LARGE_TRACE = 2**20
"""Bytes; a larger trace is compressed, which viewers read as well."""

_STORABLE: frozenset[Signal] = frozenset({"logits", "embedding"})


def bench_speed(
    settings: Settings,
    *,
    steps: int = 20,
    warmup: int = 5,
    trace: Path | None = None,
    quiet: bool = False,
    modules: Mapping[str, nn.Module] | None = None,
) -> dict[str, Any]:
    """Measure a distillation's step: how long it takes, where the time goes, and how it compares with plain training.

    Args:
        settings: of the run whose step it is; the teacher's accuracy is not looked at.
        steps: measured steps, without a profiler; up to five more are profiled.
        warmup: steps before them, in which compilers and caches do their work.
        trace: a folder for the profiler's trace, the page and the figures.
        quiet: do not say on the terminal what is being done.
        modules: networks given as objects, by the name that the settings use for them.

    Returns:
        What ``breakdown.json`` holds.

    Raises:
        InputError: no teacher, numbers of steps that are none, a folder that holds other things or cannot be written,
            or settings that do not fit together.
    """
    check_speed(settings, steps=steps, warmup=warmup, trace=trace)
    if trace is not None:
        on_main(lambda: _make(trace))
    accelerator = connect(settings.device, settings.train.precision)
    progress = reporter("quiet" if quiet or not accelerator.is_main_process else "auto")
    progress.message("building networks and data")
    parts = compose(_as_long_as_stored(settings, modules or ()), modules)
    trainer = _stepper(parts, parts.student)
    trainer_steps = trainer.steps()
    found: dict[str, Any] = {}

    def measure() -> None:
        progress.message(f"warming up: {_steps(warmup)}")
        for _ in range(warmup):
            next(trainer_steps)
        progress.message(f"timing: {_steps(steps)}")
        found["timed"] = timed(trainer, trainer_steps, steps)
        split, few, rounds = not parts.train.compile_method, min(steps, MOST_PROFILED), max(3, steps // 2)
        progress.message(f"profiling: {_steps(few)}, after one that is thrown away")
        found["profile"] = profiled(trainer, trainer_steps, few, split_method=split)
        trainer_steps.close()
        progress.message(f"in turn with plain training: {rounds} rounds")
        found["in turn"] = _compare(trainer, parts, rounds=rounds)

    trainer.measure(measure)
    figures = _figures(parts, accelerator.device.type, warmup, found)
    if trace is not None:
        on_main(lambda: _write(trace, figures, found["profile"][1]))
    return figures


def try_speed(
    settings: Settings, *, steps: int = 20, warmup: int = 5, trace: Path | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Build everything and take two steps of the run itself; nothing is measured or written."""
    check_speed(settings, steps=steps, warmup=warmup, trace=trace)
    return {"dry_run": {settings.method.name: try_out(_as_long_as_stored(settings), quiet=quiet)}}


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _as_long_as_stored(settings: Settings, given: Collection[str] = ()) -> Settings:
    """With a store, and no length asked for, a training of as many epochs as are stored: its steps are the same."""
    path = store_of(settings.teachers, given)
    if path is None or settings.train.epochs is not None or settings.train.steps is not None:
        return settings
    epochs = Store.open(path).num_epochs()
    return settings.model_copy(update={"train": settings.train.model_copy(update={"epochs": epochs or None})})


def check_speed(settings: Settings, *, steps: int, warmup: int, trace: Path | None) -> None:
    """Refuse what can be refused before anything is built.

    Raises:
        InputError: as of :func:`bench_speed`.
    """
    if steps < 1 or warmup < 0:
        raise InputError(
            f"--steps {steps} --warmup {warmup}",
            "1 measured step or more, after 0 or more to warm up",
            "give larger numbers, or leave the options out",
        )
    if not settings.teachers:
        raise InputError("a step without a teacher", "a distillation", "name a teacher with --teacher")
    if trace is not None and trace.exists():
        _check_folder(trace)


def _check_folder(folder: Path) -> None:
    """See that it is a folder, with nothing in it but an earlier trace, which is then replaced."""
    with _writing(folder):
        others = sorted(path.name for path in folder.iterdir() if path.name not in (PAGE, FIGURES, TRACE, LARGE))
    if others:
        raise InputError(
            f"trace folder {folder}, which holds {others[0]}" + (" and more" if others[1:] else ""),
            "a new folder, an empty one, or one with an earlier trace",
            "give another --trace",
        )


def _make(folder: Path) -> None:
    """Whether the folder can be made is worth knowing before anything is measured."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _stepper(parts: Parts, student: nn.Module) -> Stepper:
    return Stepper(
        student,
        parts.method,
        parts.teacher,
        parts.train_loader,
        None,
        parts.train,
        parts.settings.seed,
        parts.settings.device,
        None,
    )


def _compare(trainer: Stepper, parts: Parts, *, rounds: int) -> dict[str, list[float]]:
    """The step on batches that are there already, beside one without teacher and method, and one with answers at hand.

    All wait for no data, so the ratios are of computing alone.
    """
    plain, teacher, held = _plain(trainer, parts), trainer.teacher, trainer.held

    def online(index: int) -> None:
        trainer.check_stop()
        trainer.train_step(held[index])

    ways: dict[str, Callable[[int], None]] = {"online": online, "plain": lambda index: plain.train_step(held[index])}
    is_live = isinstance(teacher, nn.Module)
    if is_live and trainer.method.needs <= _STORABLE and not parts.train.cuda_graphs:
        known = at_hand(trainer)

        def answered(index: int) -> None:
            known.serve(index)
            trainer.teacher = known
            try:
                trainer.train_step(held[index])
            finally:
                trainer.teacher = teacher

        ways["at_hand"] = answered
    return in_turn(ways, rounds, trainer.accelerator.device, num_held=len(held))


def _plain(trainer: Stepper, parts: Parts) -> Stepper:
    """A copy of the student as it is now, trained on labels alone in the same way."""
    student = copy.deepcopy(trainer.student)
    alone = build_method("none", {}, student, None, num_classes=len(parts.splits.class_names))
    # Without the hard-label term there would be nothing to train on.
    weight = parts.train.cross_entropy_weight or 1.0
    train = parts.train.model_copy(update={"cross_entropy_weight": weight})
    settings = parts.settings
    return Stepper(student, alone, None, parts.train_loader, None, train, settings.seed, settings.device, None)


def _figures(parts: Parts, device: str, warmup: int, found: Mapping[str, Any]) -> dict[str, Any]:
    steps: Timed = found["timed"]
    profiled_ms, trace = found["profile"]
    whole = parts.train.compile_method
    method = "bridges and loss" if whole else "loss"
    order = tuple(name for name in PARTS if not whole or name != "bridges")
    part_of = {PREFIX + name: name for name in (*PHASES, "bridges")} | {f"{PREFIX}method": method}
    split = breakdown(
        trace["traceEvents"],
        window=WINDOW,
        part_of=part_of,
        order=[method if name == "loss" else name for name in order],
        num_steps=min(len(steps.ms), MOST_PROFILED),
    )
    spread = _spread(steps.ms)
    return {
        "schema": 1,
        "kind": "speed",
        **_about(parts, device),
        "warmup": warmup,
        "steps": len(steps.ms),
        "step_ms": spread,
        "images_per_second": steps.images_per_second,
        "data_wait_share": steps.data_wait_share,
        "peak_memory_bytes": steps.peak_bytes,
        "profiled": {"steps": split.num_steps, "ms": profiled_ms, "on_device": split.on_device},
        # A profiler makes every step longer: of its steps the shares are kept, of the others the time.
        "parts": [asdict(part) | {"step_ms": part.share * spread["median"]} for part in split.parts],
        "in_turn": _ratios(found["in turn"]),
        "settings": parts.settings.model_dump(mode="json"),
        "environment": environment(),
        "command": command_line(),
    }


def _about(parts: Parts, device: str) -> dict[str, Any]:
    """What was measured, in words and numbers."""
    assert parts.teacher is not None
    return {
        "teacher": parts.teacher.spec.name,
        "student": parts.student.spec.name,
        "method": parts.settings.method.name,
        "data": parts.settings.data.source,
        "batch_size": min(parts.train.batch_size, len(parts.train_loader.ids)),
        "image_size": list(parts.student.spec.input.image_size),
        "device": device,
        "teacher_is_stored": not isinstance(parts.teacher, nn.Module),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": statistics.median(values), "low": low, "high": high}


def _ratios(taken: Mapping[str, list[float]]) -> dict[str, Any]:
    """Each way's milliseconds, and round by round its ratio to the plain step."""
    return {
        name: {
            "ms": _spread(ms),
            "ratio": _spread([one / other for one, other in zip(ms, taken["plain"], strict=True)]),
        }
        for name, ms in taken.items()
    }


def _write(folder: Path, figures: Mapping[str, Any], trace: Mapping[str, Any]) -> None:
    content = json.dumps(trace).encode()
    is_large = len(content) > LARGE_TRACE
    with _writing(folder):
        for name in (TRACE, LARGE):
            (folder / name).unlink(missing_ok=True)
        write_bytes(folder / (LARGE if is_large else TRACE), gzip.compress(content) if is_large else content)
        write_text(folder / FIGURES, json.dumps(figures, indent=2, allow_nan=False) + "\n")
        write_text(folder / PAGE, breakdown_page(figures))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        with writing(folder):
            yield
    except InputError as error:  # said there of runs, which have --out and --resume
        raise InputError(error.given, error.expected, "make room, or give another --trace") from error
