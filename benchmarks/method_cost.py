"""What each method costs: parameters of its own, time and memory of a training step beside that of ``kd``.

A step is what the loop does with one batch: the teacher's signals, the student's forward pass, the losses, all
gradients and one step of the optimiser. Every method runs in turn with ``kd`` on the same two live networks; the order
changes from round to round. The ratio is the median over the rounds of the method divided by ``kd``, with a 95 %
bootstrap interval. Memory is what one step allocates at its peak beyond weights, gradients and optimiser state.

    python benchmarks/method_cost.py --threads 2
    python benchmarks/method_cost.py --device cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from timing import MIB, Row, interval, made, peak_bytes, seconds, write
from torch import nn

from crossdistill import build
from crossdistill.contracts import Batch, Method, Moment
from crossdistill.engine.learner import Learner
from crossdistill.registry import METHODS
from crossdistill.report.table import markdown
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.settings import TrainSettings
from crossdistill.teachers import FrozenTeacher

PAIRS = (("swin_tiny_patch4_window7_224", "resnet18"), ("convnext_tiny", "deit_tiny_patch16_224"))
"""The published pairs of FBT's open questions: a transformer teaches a CNN, and a CNN a transformer."""

IMAGE_SIZE, NUM_CLASSES, REFERENCE = 224, 100, "kd"
BATCH_SIZE = {"cpu": 4, "cuda": 128}
ROUNDS = {"cpu": 3, "cuda": 40}

COLUMNS = (
    *("method", "teacher", "student", "batch_size", "image_size", "rounds", "parameters", "student_parameters"),
    *("kd_ms", "ms", "ratio", "ratio_low", "ratio_high", "kd_mib", "mib", "memory_ratio"),
    *("threads", "processor", "device", "torch", "commit", "command", "date"),
)
SAME = ("method", "teacher", "student", "batch_size", "image_size", "device")


class Pair:
    """Two live networks, a batch for them, and training steps with any method."""

    def __init__(self, teacher: str, student: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device, self.names = device, (teacher, student)
        self.student = build(student, num_classes=NUM_CLASSES)
        self.network = build(teacher, num_classes=NUM_CLASSES).to(device)
        size = BATCH_SIZE[device.type]
        images = torch.rand(size, 3, IMAGE_SIZE, IMAGE_SIZE)
        target = torch.arange(size) % NUM_CLASSES
        self.batch = Batch({"student": images, "teacher0": images}, target, torch.arange(size)).to(device)

    def method(self, name: str) -> tuple[Method, FrozenTeacher]:
        """The method with its default options, and a teacher of its own: the method decides what that one passes on."""
        teacher = FrozenTeacher(self.network)
        name, options = resolve_method(name, {})
        needed = teacher if METHODS.get(name).value.needs else None
        return build_method(name, options, self.student, needed, num_classes=NUM_CLASSES), teacher

    def step(self, method: Method, teacher: FrozenTeacher) -> Callable[[], object]:
        """One training step with that method."""
        learner: nn.Module = Learner(self.student, method, TrainSettings(), several=False).to(self.device).train()
        optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-4)

        def run() -> object:
            method.begin_step(Moment(0, 1))
            signals = teacher.signals(self.batch) if method.needs else None
            losses = learner(self.batch, signals)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            return None

        return run


def measure(pair: Pair, name: str, rounds: int) -> Row:
    """One method beside ``kd``."""
    method, teacher = pair.method(name)
    steps = pair.step(*pair.method(REFERENCE)), pair.step(method, teacher)
    for step in steps:
        step()
    taken = np.zeros((rounds, 2))
    for number in range(rounds):
        for variant in (0, 1) if number % 2 == 0 else (1, 0):
            taken[number, variant] = seconds(steps[variant], pair.device)
    ratios = taken[:, 1] / taken[:, 0]
    milliseconds = 1000 * np.median(taken, axis=0)
    memory = [peak_bytes(step, pair.device) / MIB for step in steps]
    low, high = interval(ratios)
    numbers = {"kd_ms": milliseconds[0], "ms": milliseconds[1], "ratio": float(np.median(ratios))}
    numbers |= {"ratio_low": low, "ratio_high": high}
    numbers |= {"kd_mib": memory[0], "mib": memory[1], "memory_ratio": memory[1] / memory[0]}
    return {
        **{"method": name, "teacher": pair.names[0], "student": pair.names[1]},
        **{"batch_size": len(pair.batch), "image_size": IMAGE_SIZE, "rounds": rounds},
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "student_parameters": pair.student.spec.num_parameters,
        **{key: float(f"{value:.4g}") for key, value in numbers.items()},
    }


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Every pair and method, printed as they come."""
    device = torch.device(options.device)
    only = f" --methods {' '.join(options.methods)}" if options.methods else ""
    command = f"python benchmarks/method_cost.py --device {options.device} --threads {options.threads}{only}"
    place = made(command, device)
    for teacher, student in PAIRS:
        pair = Pair(teacher, student, device)
        for name in options.methods or [record.name for record in METHODS]:
            row = measure(pair, name, options.rounds or ROUNDS[device.type])
            print(f"{teacher} -> {student}: {name} {row['ratio']:.2f} of {REFERENCE}", flush=True)
            yield row | place


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(BATCH_SIZE), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS['cpu']} on a CPU, {ROUNDS['cuda']} on a GPU")
    parser.add_argument("--methods", nargs="+", help="only these; default: all")
    parser.add_argument("--out", type=Path, default=Path("results/speed/methods.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = list(rows(options))
    write(options.out, found, COLUMNS, SAME)
    columns = ("Method", "Student", "Ratio", "95 % interval", "Memory", "Parameters")
    cells = [
        (
            *(row["method"], row["student"], f"{row['ratio']:.2f}"),
            *(f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}", f"{row['memory_ratio']:.2f}"),
            f"{row['parameters']:,}",
        )
        for row in found
    ]
    print(markdown(columns, tuple(cells), num_text_columns=2))


if __name__ == "__main__":
    main()
