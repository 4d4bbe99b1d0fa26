"""What the benchmarks share: the clock, the peak of memory, running in turn, intervals, and rows in a CSV file."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import origin
from torch.profiler import ProfilerActivity, profile

from crossdistill.analysis.environment import environment
from crossdistill.analysis.turns import order_of
from crossdistill.files import write_text, writing

NUM_RESAMPLES = 10_000
MIB = 2**20

Pass = Callable[[], object]
"""What is timed; it returns what its caller would hold."""

Row = dict[str, Any]


def seconds(run: Pass, device: torch.device) -> float:
    """How long one pass takes; what it returns is freed after the clock is read."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        held = run()
        end.record()
        torch.cuda.synchronize()
        del held
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    held = run()
    taken = time.perf_counter() - begin
    del held
    return taken


def in_turn(passes: Sequence[Pass], rounds: int, device: torch.device, *, warmup: int = 1) -> NDArray[np.float64]:
    """Seconds ``(rounds, passes)``: a round runs each once, in an order drawn anew for two rounds and then reversed."""
    taken = np.zeros((warmup + rounds, len(passes)))
    for number in range(warmup + rounds):
        for index in order_of(number, len(passes)):
            taken[number, index] = seconds(passes[index], device)
    return taken[warmup:]


def interval(ratios: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median."""
    drawn = np.random.default_rng(0).choice(ratios, size=(NUM_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def compared(name: str, ratios: NDArray[np.float64]) -> Row:
    """Median and interval as the columns ``name``, ``name_low`` and ``name_high``."""
    low, high = interval(ratios)
    return {name: float(np.median(ratios)), f"{name}_low": low, f"{name}_high": high}


def peak_bytes(run: Pass, device: torch.device) -> int:
    """What one pass allocates at its peak, beyond what is allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        held = run()
        torch.cuda.synchronize()
        del held
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        held = run()
    del held
    return max(np.cumsum(_allocations(profiled)), default=0)


def _allocations(profiled: profile) -> list[int]:
    """Bytes of every allocation, and less than 0 of every release, in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = [event for event in events if event["name"] == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(found, key=lambda event: event["ts"])]


def made(command: str, device: torch.device) -> Row:
    """The columns that say where, with what and when a row was made."""
    facts = environment()
    return origin(facts, command) | {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "processor": facts["cpu"],
        "timm": facts["timm"],
    }


def rounded(row: Row) -> Row:
    """The row with four digits of each number that is not a whole one."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file, none where there is no file."""
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def write(path: Path, rows: Sequence[Row], columns: Sequence[str], same: Sequence[str]) -> None:
    """Write the rows; those of the file that differ from all of these in one of the columns ``same`` are kept."""
    text = [{column: as_text(row.get(column)) for column in columns} for row in rows]
    marks = {tuple(row[key] for key in same) for row in text}
    kept = [row for row in read(path) if tuple(row[key] for key in same) not in marks]
    content = io.StringIO()
    writer = csv.DictWriter(content, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*kept, *text])
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, content.getvalue())


def as_text(value: object) -> str:
    """A value as the file holds it; of nothing, nothing."""
    return "" if value is None else str(value)


def is_finished(row: Row, path: Path, same: Sequence[str]) -> bool:
    """Whether the file holds this experiment, made at this commit."""
    keys = (*same, "commit")
    return any(all(found[key] == as_text(row.get(key)) for key in keys) for found in read(path))
