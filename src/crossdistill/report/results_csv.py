"""Finished runs as CSV rows under version control, and the README's tables made from them.

``python -m crossdistill.report.results_csv README.md results`` rewrites the tables; with ``--check`` it only says
whether they are up to date.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdistill.errors import InputError, nearest
from crossdistill.files import write_text, writing
from crossdistill.report.table import grouped, magnitude, markdown, significant

COLUMNS = (
    *("recipe", "teacher", "student", "method", "data", "image_size", "epochs_or_steps", "seeds"),
    *("top1_mean", "top1_sd", "top1_by_seed", "teacher_top1", "num_parameters", "gmacs"),
    *("device", "torch", "commit", "command", "date"),
)
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row; the file is made with its header if it does not exist. Missing values are left empty.

    Raises:
        InputError: a key that is no column, a file with other columns, or one that cannot be written.
    """
    for key in row:
        if key not in COLUMNS:
            raise InputError(f"results column {key!r}", "a column of the results", nearest(key, COLUMNS))
    rows = read_rows(path) if path.exists() else []
    values = {column: "" if row.get(column) is None else str(row[column]) for column in COLUMNS}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, values])
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text.getvalue())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a results file, as text.

    Raises:
        InputError: a file that cannot be read, has other columns, or a row with more or fewer cells.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"results file {path}: {error}", "a readable CSV file", "check the path") from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        given = ", ".join(reader.fieldnames or ()) or "nothing"
        raise InputError(f"results file {path} with columns {given}", ", ".join(COLUMNS), "mend its first line")
    rows = list(reader)
    for row in rows:
        if None in row or None in row.values():
            raise InputError(f"results file {path}: row {row}", f"{len(COLUMNS)} cells", "mend that line")
    return rows


def markdown_table(path: Path) -> str:
    """One results file as a Markdown table, with accuracies in percent."""
    columns = (
        "Teacher",
        "Student",
        "Method",
        "Size",
        "Length",
        "Seeds",
        "Top-1",
        "Teacher's top-1",
        "Parameters",
        "GMACs",
    )
    return markdown(columns, tuple(_cells(path, row) for row in read_rows(path)), num_text_columns=3)


def _cells(path: Path, row: Mapping[str, str]) -> tuple[str, ...]:
    try:
        spread = f" ± {100 * float(row['top1_sd']):.1f}" if row["top1_sd"] else ""
        teacher = f"{100 * float(row['teacher_top1']):.1f} %" if row["teacher_top1"] else ""
        return (
            *(row["teacher"], row["student"], row["method"], row["image_size"], row["epochs_or_steps"], row["seeds"]),
            f"{100 * float(row['top1_mean']):.1f}{spread} %",
            teacher,
            magnitude(int(row["num_parameters"])) if row["num_parameters"] else "",
            significant(float(row["gmacs"])) if row["gmacs"] else "",
        )
    except ValueError as error:
        raise InputError(
            f"results file {path}: {error}", "numbers in its columns of numbers", "mend the row"
        ) from error


def update_readme(readme: Path, results_dir: Path, *, check: bool = False) -> bool:
    """Rewrite the block between the markers from every CSV file; returns whether it was up to date before.

    Args:
        check: write nothing.

    Raises:
        InputError: a README without the two markers, or a damaged results file.
    """
    return update_blocks(readme, {(BEGIN, END): _block(results_dir)}, check=check)


def update_blocks(page: Path, blocks: Mapping[tuple[str, str], str], *, check: bool = False) -> bool:
    """Rewrite what stands between each pair of markers of a page; returns whether all was up to date before.

    Args:
        page: a Markdown file.
        blocks: the text for each (line that begins a block, line that ends it).
        check: write nothing.

    Raises:
        InputError: a page that cannot be read, or lacks a marker.
    """
    try:
        text = wanted = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{page}: {error.strerror}", "a readable file", "check the path") from error
    for (begin, end), block in blocks.items():
        before, begin_found, rest = wanted.partition(begin)
        _, end_found, after = rest.partition(end)
        if not begin_found or not end_found:
            raise InputError(f"{page} without a block of generated text", f"{begin} and, after it, {end}", "add them")
        wanted = f"{before}{begin}\n{block}{end}{after}"
    if wanted != text and not check:
        with writing(page.parent):
            write_text(page, wanted)
    return wanted == text


def _block(results_dir: Path) -> str:
    parts = []
    for path in sorted(results_dir.glob("*.csv")):
        rows = read_rows(path)
        facts = "; ".join(sorted({f"{row['device']}, torch {row['torch']}" for row in rows}))
        parts.append(f"\n**{path.stem}** ({grouped(len(rows))} rows of `{path.parent.name}/{path.name}`; {facts})\n\n")
        parts.append(markdown_table(path) + "\n")
    return "".join(parts)


def command(update: Callable[..., bool], what: str, arguments: Sequence[str] | None) -> int:
    """A command line ``TARGET RESULTS [--check]`` around an update that says whether all was up to date before."""
    parser = argparse.ArgumentParser(description=f"Rewrite {what} from the CSV files of results.")
    parser.add_argument("target", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if anything is out of date")
    options = parser.parse_args(arguments)
    try:
        current = update(options.target, options.results, check=options.check)
    except InputError as error:
        parser.exit(2, f"{error}\n")
    return int(options.check and not current)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check the README's tables; 1 where a check finds them out of date, 2 for bad input."""
    return command(update_readme, "the README's results tables", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
