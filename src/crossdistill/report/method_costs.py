"""What methods cost, as measured by ``benchmarks/method_cost.py`` and shipped with the project."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from crossdistill.errors import InputError
from crossdistill.files import shipped
from crossdistill.report.table import magnitude, markdown

FILE = "results/speed/methods.csv"


@dataclass(frozen=True, slots=True)
class MethodCost:
    """One method on one pair.

    ``time`` and ``memory`` of a training step are shares of what ``kd`` takes on the same pair. ``parameters`` are the
    method's own, which training adds and the finished student does not have.
    """

    method: str
    teacher: str
    student: str
    time: float
    time_interval: tuple[float, float]
    memory: float
    parameters: int
    student_parameters: int
    device: str


def method_costs(path: Path | None = None) -> list[MethodCost]:
    """Every measured method and pair; none where nothing was measured.

    Raises:
        InputError: a damaged file.
    """
    path = path or shipped(FILE)
    if path is None:
        return []
    try:
        return [_cost(row) for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))]
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: {error!r}", "rows as benchmarks/method_cost.py writes them", "measure again"
        ) from error


def _cost(row: dict[str, str]) -> MethodCost:
    return MethodCost(
        *(row["method"], row["teacher"], row["student"]),
        time=float(row["ratio"]),
        time_interval=(float(row["ratio_low"]), float(row["ratio_high"])),
        memory=float(row["memory_ratio"]),
        parameters=int(row["parameters"]),
        student_parameters=int(row["student_parameters"]),
        device=row["device"],
    )


def cost_table(method: str, path: Path | None = None) -> str:
    """The costs of one method as a Markdown table, for its page."""
    columns = ("Teacher", "Student", "Time of a step, of kd's", "Memory, of kd's", "Own parameters", "Device")
    cells = tuple(
        (
            *(one.teacher, one.student),
            f"{one.time:.2f} ({one.time_interval[0]:.2f} to {one.time_interval[1]:.2f})",
            f"{one.memory:.2f}",
            f"{magnitude(one.parameters)} ({one.parameters / one.student_parameters:.2f} of the student's)",
            one.device,
        )
        for one in method_costs(path)
        if one.method == method
    )
    return markdown(columns, cells, num_text_columns=2)
