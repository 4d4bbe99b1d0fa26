"""How long it takes until a command does its work: whole processes, from start to end, on a warm disk cache.

A round starts each process once, one after the other, in changing order; the first round is not counted. Seconds are
medians over the rounds, with a 95 % bootstrap interval; ``cpu_seconds`` is the processor's time, which other load on
the machine hardly changes. A bare interpreter, torch and timm stand beside them: what a command needs of these it
cannot save.

    python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timing import Row, interval, made, rounded, write

from crossdistill.analysis.turns import order_of
from crossdistill.report.table import markdown

GOAL_SECONDS = 1.0
ROUNDS = 15

DRY_RUN = (
    "distill --dry-run --teacher timm/test_vit --student timm/test_resnet --method ofa --data digits --image-size 32 "
    "--limit-train 200 --batch-size 50 --device cpu --out unused teachers.0.image_size=32"
)
PROCESSES: dict[str, tuple[list[str], float | None]] = {
    "python -c pass": (["-c", "pass"], None),
    "python -c 'import crossdistill'": (["-c", "import crossdistill"], GOAL_SECONDS),
    "crossdistill --help": (["-m", "crossdistill", "--help"], GOAL_SECONDS),
    "crossdistill distill --help": (["-m", "crossdistill", "distill", "--help"], GOAL_SECONDS),
    "crossdistill methods": (["-m", "crossdistill", "methods"], None),
    "python -c 'import torch'": (["-c", "import torch"], None),
    "python -c 'import timm'": (["-c", "import timm"], None),
    f"crossdistill {DRY_RUN}": (["-m", "crossdistill", *shlex.split(DRY_RUN)], None),
}
"""What is typed -> what is started, and the seconds it may take, where that is a goal."""

COLUMNS = (
    *("process", "rounds", "seconds", "seconds_low", "seconds_high", "cpu_seconds", "goal_seconds", "met"),
    *("threads", "processor", "timm", "device", "torch", "commit", "command", "date"),
)
SAME = ("process", "threads", "processor")


def seconds(arguments: list[str], folder: str) -> tuple[float, float]:
    """Wall time and processor time of one process, which must succeed."""
    before = _cpu_seconds()
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True)
    taken = time.perf_counter() - begin
    return taken, _cpu_seconds() - before


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_turn(rounds: int) -> NDArray[np.float64]:
    """Wall time and processor time ``(rounds, processes, 2)``, after a round that only warms the cache."""
    taken = np.zeros((rounds + 1, len(PROCESSES), 2))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for index in order_of(number, len(PROCESSES)):
                taken[number, index] = seconds(list(PROCESSES.values())[index][0], folder)
            print(f"round {number} of {rounds}", flush=True)
    return taken[1:]


def rows(rounds: int) -> list[Row]:
    """A row a process."""
    taken, origin = in_turn(rounds), made(f"python benchmarks/startup.py --rounds {rounds}", torch.device("cpu"))
    found = []
    for index, (process, (_, goal)) in enumerate(PROCESSES.items()):
        low, high = interval(taken[:, index, 0])
        wall, cpu = np.median(taken[:, index], axis=0)
        row = {"process": process, "rounds": rounds, "seconds": float(wall), "seconds_low": low, "seconds_high": high}
        met = None if goal is None else "yes" if high < goal else "no" if low >= goal else "open"
        found.append(rounded(row | {"cpu_seconds": float(cpu), "goal_seconds": goal, "met": met}) | origin)
    return found


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=Path("results/speed/startup.csv"))
    options = parser.parse_args()
    found = rows(options.rounds)
    write(options.out, found, COLUMNS, SAME)
    columns = ("Process", "Seconds", "95 % interval", "Processor's seconds", "Goal")
    cells = tuple(
        (
            *(row["process"], f"{row['seconds']:.2f}", f"{row['seconds_low']:.2f} to {row['seconds_high']:.2f}"),
            *(
                f"{row['cpu_seconds']:.2f}",
                "" if row["met"] is None else f"under {row['goal_seconds']:g}: {row['met']}",
            ),
        )
        for row in found
    )
    print(markdown(columns, cells, num_text_columns=1))


if __name__ == "__main__":
    main()
