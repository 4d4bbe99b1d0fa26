"""The generated parts of the methods' pages: what each costs, and every result that was recorded of it.

``python -m crossdistill.report.method_pages docs/methods results`` rewrites them; with ``--check`` it only says whether
they are up to date.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from crossdistill.analysis.compare import difference, points
from crossdistill.report.method_costs import cost_table
from crossdistill.report.results_csv import command, read_rows, update_blocks
from crossdistill.report.table import markdown, unbroken

INDEX = "README.md"
PILOT = "pilot/methods.csv"
END = {"cost": "<!-- cost:end -->", "rows": "<!-- rows:end -->", "pilot": "<!-- pilot:end -->"}
EXPERIMENT = ("recipe", "student", "data", "image_size", "epochs_or_steps")
"""What a method and the student alone must share for their difference to mean anything."""

ResultRow = Mapping[str, str]


def update_pages(pages: Path, results: Path, *, check: bool = False) -> bool:
    """Rewrite the generated parts of every page below ``pages``; returns whether all were up to date before.

    Args:
        pages: one Markdown file a method, named as the method, and ``README.md`` with the table of all.
        results: the folder of CSV files.
        check: write nothing.

    Raises:
        InputError: a page without its markers, or a damaged results file.
    """
    rows = _all_rows(results)
    current = []
    for page in sorted(pages.glob("*.md")):
        blocks = {("<!-- pilot:begin -->", END["pilot"]): pilot_table(results)}
        if page.name != INDEX:
            costs, found = cost_table(page.stem, results / "speed/methods.csv"), rows_table(page.stem, rows)
            blocks = {
                (f"<!-- cost:begin {page.stem} -->", END["cost"]): f"\n{costs}\n",
                (f"<!-- rows:begin {page.stem} -->", END["rows"]): f"\n{found}\n",
            }
        current.append(update_blocks(page, blocks, check=check))
    return all(current)


def _all_rows(results: Path) -> list[dict[str, str]]:
    files = [*sorted(results.glob("*.csv")), *sorted((results / "pilot").glob("*.csv"))]
    return [row for path in files for row in read_rows(path)]


def rows_table(method: str, rows: Sequence[ResultRow]) -> str:
    """Every recorded result of a method, with what it gained over the student alone, and over its own defaults."""
    found = [row for row in rows if row["method"] == method or row["method"].startswith(f"{method} (")]
    varied = any(row["method"] != method for row in found)
    columns = (
        *("Experiment", "Teacher", "Student", "Method", "Length", "Top-1", "Gain over the student alone (points)"),
        *(("Difference to the defaults (points)",) * varied),
    )
    cells = tuple(
        (
            *(row["recipe"], row["teacher"], row["student"], row["method"], row["epochs_or_steps"]),
            *(_top1(row), gain(row, rows)),
            *((gain(row, rows, over=method),) * varied),
        )
        for row in found
    )
    return markdown(columns, cells, num_text_columns=5) if cells else "None yet.\n"


def pilot_table(results: Path) -> str:
    """Every method on every pair of the pilot."""
    if not (results / PILOT).exists():
        return ""
    rows = read_rows(results / PILOT)
    pairs = list(dict.fromkeys(row["recipe"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    teachers = {row["recipe"]: f"{row['teacher']} to {row['student']}" for row in rows if row["teacher"]}
    by_key = {(row["method"], row["recipe"]): row for row in rows}
    columns = ("Method", *(teachers.get(pair, pair) for pair in pairs))
    cells = tuple((method, *(_cell(by_key.get((method, pair)), rows) for pair in pairs)) for method in methods)
    return f"\n{markdown(columns, cells, num_text_columns=1)}\n"


def _cell(row: ResultRow | None, rows: Iterable[ResultRow]) -> str:
    if row is None:
        return ""
    gained = gain(row, rows)
    return f"{_top1(row)}; {gained}" if gained else _top1(row)


def _top1(row: ResultRow) -> str:
    spread = f" ± {100 * float(row['top1_sd']):.1f}" if row["top1_sd"] else ""
    return unbroken(f"{100 * float(row['top1_mean']):.1f}{spread} %")


def gain(row: ResultRow, rows: Iterable[ResultRow], *, over: str = "none") -> str:
    """The paired difference to another method in the same experiment, in points with its 95 % interval."""
    other = next(
        (one for one in rows if one["method"] == over and all(one[key] == row[key] for key in EXPERIMENT)), None
    )
    if other is None or row["method"] == over:
        return ""
    measured = difference(_by_seed(other), _by_seed(row))
    if measured is None:
        return unbroken(points(float(row["top1_mean"]) - float(other["top1_mean"])))
    if measured.interval is None:
        return unbroken(points(measured.mean))
    low, high = measured.interval
    return unbroken(f"{points(measured.mean)} ({points(low)} to {points(high)})")


def _by_seed(row: ResultRow) -> dict[int, float]:
    pairs = (word.split(":") for word in row["top1_by_seed"].split())
    return {int(seed): float(value) for seed, value in pairs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the pages; 1 where a check finds one out of date, 2 for bad input."""
    return command(update_pages, "the generated parts of the methods' pages", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
