"""What commands print on standard output: JSON for machines, tables and sentences for people."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_json(value: Any) -> None:
    """One JSON value."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str] = ()) -> None:
    """A table of plain text; the columns named in ``numbers`` are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


def print_indented(key: str, text: str) -> None:
    """A word and a text that is folded beside it."""
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=8)
    table.add_column(overflow="fold")
    table.add_row(escape(key), escape(text))
    Console().print(table, highlight=False)


def show_results(results: Mapping[str, Any], *, as_json: bool, out: Path) -> None:
    """The results of a run: the table, the verdict and what is to be noted."""
    if as_json:
        print_json(results)
    elif "dry_run" in results:
        for trial in results["dry_run"].values():
            _show_trial(trial)
        say("dry run: everything fits together; nothing was written")
    else:
        from crossdistill.report import rich_table

        if results["rows"]:
            Console().print(rich_table(results))
        else:
            say("no labelled image: nothing was measured")
        for text in [results["headline"], *(f"note: {warning}" for warning in results["warnings"])]:
            if text:
                say(text)
        # A path that is broken over two lines cannot be copied.
        Console().print(f"report: {out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def _show_trial(trial: Mapping[str, Any]) -> None:
    """What a dry run built, in a few lines."""
    lines = {"student": _network(trial["student"])}
    if trial["teacher"] is not None:
        lines["teacher"] = f"{_network(trial['teacher'])}, top-1 {trial['teacher_top1']:.1%}"
    lines["method"] = f"{trial['method']['name']}, {trial['method']['num_parameters']:,} parameters of its own"
    lines["images"] = f"{trial['num_train']:,} to train on, {trial['num_labelled']:,} of them with a label"
    lines["steps"] = f"{trial['steps_per_epoch']:,} an epoch, {trial['images_per_second']:.0f} images/s"
    for key, text in lines.items():
        say(f"{key:>7}: {text}")
    for warning in trial["warnings"]:
        say(f"   note: {warning}")


def _network(spec: Mapping[str, Any]) -> str:
    height, width = spec["input"]["image_size"]
    facts = [f"{spec['num_parameters']:,} parameters", f"{len(spec['stages'])} stages", f"{height} x {width} px"]
    return f"{spec['name']} ({spec['family']}), {', '.join(facts)}"


def say(text: str) -> None:
    """A sentence as it is, folded at the edge of the terminal."""
    Console().print(text, markup=False, highlight=False)
