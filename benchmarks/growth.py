"""How a training step grows with the number of classes, the batch, the exit branches and the number of teachers.

Networks are small, so that what distilling adds shows. A row is one method with a live teacher (``online``), a store of
all logits (``stored``) or of the 10 largest (``top_k``); everything of a point runs in turn as in ``step.py``:

    ratio        the step / the student's step alone
    method_ms    what is left of the step without the student's step alone and, online, the teacher's forward pass

``slope_ns`` is that of a straight line through ``method_ms`` over all values of an axis (least squares), per image and
what ``per`` says; ``slope_r2`` is how much of the differences it explains. Rows are written point by point, and those
of this commit are not measured again.

    python benchmarks/growth.py --threads 2
    python benchmarks/growth.py --device cuda --precision bf16
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import Row, compared, is_finished, made, read, rounded, write
from training_step import ONLINE, PLAIN, TEACHER, Case, Live, add_loop_options, loop_settings, measure

from crossdistill.report.table import markdown

TEACHER_NAME, STUDENT_NAME = "test_vit", "test_resnet"
IMAGE_SIZE, NUM_CLASSES, NUM_STAGES = 32, 1000, 4
BATCH_SIZE = {"cpu": 32, "cuda": 256}
ROUNDS = {"cpu": 20, "cuda": 60}

CLASSES = (10, 100, 1000, 10_000, 21_000)
BATCHES = {"cpu": (8, 16, 32, 64, 128), "cuda": (64, 128, 256, 512, 1024)}
TEACHERS = (1, 2, 4)

COLUMNS = (
    *("axis", "value", "method", "answers", "ratio", "ratio_low", "ratio_high"),
    *("method_ms", "method_ms_low", "method_ms_high", "per", "slope_ns", "slope_r2"),
    *("plain_ms", "teacher_ms", "step_ms", "teacher", "student", "num_classes", "image_size", "batch_size"),
    *("precision", "channels_last", "compile", "rounds"),
    *("threads", "processor", "timm", "device", "torch", "commit", "command", "date"),
)
SAME = (
    *("axis", "value", "method", "answers", "student", "image_size"),
    *("precision", "channels_last", "compile", "threads", "device"),
)
LINE = tuple(key for key in SAME if key != "value")
"""What the rows of one straight line share."""

PER = {"classes": "class", "batch": "", "stages": "branch", "teachers": "teacher"}

Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Point:
    """One value of what grows, and the methods that are measured there with their options."""

    axis: str
    value: int
    case: Case
    methods: Options


def points(case: Case) -> Iterator[Point]:
    """All of them, along one axis after another."""
    logit: Options = {"kd": {}, "dkd": {}, "dist": {}, "ofa": {}}
    for value in CLASSES:
        yield Point("classes", value, replace(case, num_classes=value), logit)
    for value in BATCHES[case.device]:
        sized = replace(case, batch_size=value, train=case.train.model_copy(update={"batch_size": value}))
        yield Point("batch", value, sized, {"kd": {}, "ofa": {}, "fbt": {}})
    for value in range(1, NUM_STAGES + 1):
        last = list(range(NUM_STAGES - value + 1, NUM_STAGES + 1))
        yield Point("stages", value, case, {"ofa": {"stages": last}})
    for value in TEACHERS:
        yield Point("teachers", value, replace(case, teachers=case.teachers * value), {"kd": {}, "rsd": {}})


def measured_rows(point: Point, rounds: int) -> Iterator[Row]:
    """One row for each method and each way to its teacher's answers."""
    found = measure(Live(point.case), point.methods, rounds, with_costs=False)
    plain, teacher = found.seconds["", PLAIN], found.seconds["", TEACHER]
    for (method, answers), seconds in found.seconds.items():
        if not method:
            continue
        live = teacher if answers == ONLINE else np.zeros_like(teacher)
        medians = {"plain_ms": plain, "teacher_ms": live, "step_ms": seconds}
        yield (
            {**point.case.columns, "axis": point.axis, "value": point.value, "method": method, "answers": answers}
            | {"rounds": rounds, "per": PER[point.axis]}
            | {name: 1000 * float(np.median(values)) for name, values in medians.items()}
            | compared("ratio", seconds / plain)
            | compared("method_ms", 1000 * (seconds - plain - live))
        )


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of all points, written as soon as a point is measured."""
    device = torch.device(options.device)
    flags = " --channels-last" * options.channels_last + " --compile" * options.compile
    place = made(
        f"python benchmarks/growth.py --device {options.device} --threads {options.threads} "
        f"--precision {options.precision}{flags}",
        device,
    )
    batch = BATCH_SIZE[options.device]
    train = loop_settings(
        options.precision, channels_last=options.channels_last, compile_all=options.compile, batch_size=batch
    )
    case = Case(STUDENT_NAME, (TEACHER_NAME,), NUM_CLASSES, IMAGE_SIZE, batch, train, options.device)
    for point in points(case):
        wanted = {**point.case.columns, "axis": point.axis, "value": point.value} | place
        done = [is_finished(wanted | {"method": name, "answers": ONLINE}, options.out, SAME) for name in point.methods]
        if point.axis not in options.axes or all(done):
            continue
        found = [rounded(row | place) for row in measured_rows(point, options.rounds)]
        write(options.out, found, COLUMNS, SAME)
        print(f"{point.axis} {point.value}: {', '.join(point.methods)}", flush=True)
        yield from found


def add_slopes(path: Path) -> None:
    """Draw a line through the values of every method along every axis, and write its slope to their rows."""
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in read(path):
        lines.setdefault(tuple(row[key] for key in LINE), []).append(dict(row))
    for found in lines.values():
        images = [int(row["batch_size"]) for row in found]
        values = [1 if row["axis"] == "batch" else int(row["value"]) for row in found]
        units = np.array(images, dtype=float) * values
        taken = np.array([float(row["method_ms"]) for row in found])
        if len(set(units)) < 3:
            continue
        slope, start = np.polyfit(units, taken, 1)
        explained = 1 - float(((taken - slope * units - start) ** 2).sum() / ((taken - taken.mean()) ** 2).sum())
        line = rounded({"slope_ns": 1e6 * float(slope), "slope_r2": explained})
        write(path, [row | line for row in found], COLUMNS, SAME)


def table(found: Sequence[Mapping[str, str]]) -> str:
    """The rows for people to read."""
    columns = ("Axis", "Method", "Answers", "Value", "Ratio", "Method, ms", "ns per image and", "Slope")
    cells = tuple(
        (
            *(row["axis"], row["method"], row["answers"], f"{int(row['value']):,}"),
            *(f"{float(row['ratio']):.2f}", f"{row['method_ms']} ({row['method_ms_low']} to {row['method_ms_high']})"),
            *(row["per"], row["slope_ns"]),
        )
        for row in found
    )
    return markdown(columns, cells, num_text_columns=3)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_loop_options(parser)
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS['cpu']}, or {ROUNDS['cuda']} on a GPU")
    parser.add_argument("--axes", nargs="+", choices=tuple(PER), default=tuple(PER))
    parser.add_argument("--out", type=Path, default=Path("results/speed/growth.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.rounds = options.rounds or ROUNDS[options.device]
    for _ in rows(options):
        pass
    add_slopes(options.out)
    print(table(read(options.out)))


if __name__ == "__main__":
    main()
