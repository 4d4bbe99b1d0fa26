"""The comparison table, built once and rendered for the terminal, for Markdown and for HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import rich.box
import rich.table
from markupsafe import Markup
from rich.text import Text

from crossdistill.analysis.compare import difference, points
from crossdistill.report.results import Results, Row, as_results

_ABSENT = "–"
_GAIN, _LABELS = "Gain (points)", "Labels seen"
_NUM_TEXT_COLUMNS = 2


@dataclass(frozen=True, slots=True)
class Grid:
    """Plain text cells; the first two columns are words, the others numbers. ``roles`` has one entry per row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    roles: tuple[str, ...]
    caption: str


def comparison(results: Results | Mapping[str, Any]) -> Grid:
    """Student alone, distilled and teacher, with accuracy, gain, labels and costs."""
    results = as_results(results)
    columns = {
        "Network": [row.label for row in results.rows],
        "Model": [row.name for row in results.rows],
        "Top-1 accuracy": [accuracy(row) for row in results.rows],
        _GAIN: [gain(row, results.baseline) for row in results.rows],
        _LABELS: [_ABSENT if row.num_labels is None else grouped(row.num_labels) for row in results.rows],
        "Params": [_ABSENT if row.num_parameters is None else magnitude(row.num_parameters) for row in results.rows],
        "GMACs": [_ABSENT if row.gmacs is None else significant(row.gmacs) for row in results.rows],
        "CPU latency": [
            _ABSENT if row.latency_ms is None else unbroken(f"{significant(row.latency_ms, digits=2)} ms")
            for row in results.rows
        ],
    }
    if results.kind == "federate":
        return _of_clients(results, columns)
    pretrained = bool(results.rows) and all(row.role == "pretrained" for row in results.rows)
    if pretrained:  # nothing is compared, and training read no label
        columns = {name: cells for name, cells in columns.items() if name not in (_GAIN, _LABELS)}
    data = results.data
    caption = (
        f"Accuracy on the {data.evaluation_split} split of {data.source} ({grouped(data.num_evaluation)} images): "
        "mean ± sample standard deviation over seeds. "
    )
    if results.baseline and results.distilled:
        caption += "Gain: paired difference to the student alone, 95 % interval. "
    if pretrained:
        caption += "Labels served to measure, not to train. "
    caption += "Latency: median for one image."
    roles = tuple(row.role for row in results.rows)
    return Grid(tuple(columns), tuple(zip(*columns.values(), strict=True)), roles, caption)


def _of_clients(results: Results, columns: Mapping[str, list[str]]) -> Grid:
    """Strategies between clients: costs are those of several networks, and are not shown."""
    kept = {name: columns[name] for name in ("Network", "Model")} | {"ALMA": columns["Top-1 accuracy"]}
    kept = {"Strategy" if name == "Network" else name: cells for name, cells in kept.items()}
    caption = (
        "ALMA: average local model accuracy, the mean over clients of top-1 accuracy, each on its own distribution; "
        "mean ± sample standard deviation over seeds."
    )
    roles = tuple(row.role for row in results.rows)
    return Grid(tuple(kept), tuple(zip(*kept.values(), strict=True)), roles, caption)


def accuracy(row: Row) -> str:
    """Such as ``93.1 ± 0.4 % (3 seeds)``; a line may break before the bracket only."""
    spread = "" if row.top1_sd is None else f" ± {100 * row.top1_sd:.1f}"
    number = unbroken(f"{100 * row.top1_mean:.1f}{spread} %")
    seeds = unbroken(f"({len(row.runs)} {'seed' if len(row.runs) == 1 else 'seeds'})") if row.runs else ""
    return f"{number} {seeds}".strip()


def gain(row: Row, baseline: Row | None) -> str:
    """Difference of a distilled student to the student alone, with its interval where there is one."""
    measured = difference(baseline.by_seed, row.by_seed) if baseline and row.role == "distilled" else None
    if measured is None:
        return _ABSENT
    if measured.interval is None:
        return points(measured.mean)
    interval = unbroken(f"({points(measured.interval[0])} to {points(measured.interval[1])})")
    return f"{points(measured.mean)} {interval}"


def unbroken(text: str) -> str:
    """The text with spaces at which no line breaks."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def grouped(count: int) -> str:
    """Thousands apart by a narrow space that does not break: 50 000."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits without exponent.

    >>> significant(1.8141), significant(0.00012345), significant(312.4), significant(0.0)
    ('1.81', '0.000123', '312', '0')
    """
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def magnitude(count: int) -> str:
    """A count with its power of a thousand.

    >>> magnitude(950), magnitude(37_312), magnitude(11_689_512)
    ('950', '37.3\\xa0k', '11.7\\xa0M')
    """
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return unbroken(f"{significant(count / limit)} {unit}")
    return str(count)


def rich_table(results: Results | Mapping[str, Any]) -> rich.table.Table:
    """The comparison for a terminal of 80 characters: two lines a row, and gains without their intervals."""
    grid = comparison(results)
    table = rich.table.Table(
        box=rich.box.SIMPLE_HEAD,
        caption=Text(grid.caption),
        caption_justify="left",
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(f"{grid.columns[0]}\n{grid.columns[1]}", overflow="fold")
    for column in grid.columns[_NUM_TEXT_COLUMNS:]:
        table.add_column("\n".join(column.split(" ")), justify="right", no_wrap=True)
    for network, model, *numbers in grid.rows:
        first = Text.assemble((network, "bold"), f"\n{model}")
        columns = grid.columns[_NUM_TEXT_COLUMNS:]
        table.add_row(first, *(Text(_narrow(*cell)) for cell in zip(columns, numbers, strict=True)))
    return table


def _narrow(column: str, cell: str) -> str:
    """A gain without its interval; of others what stands in brackets on a line of its own."""
    return cell.split(" ")[0] if column == _GAIN else cell.replace(" ", "\n")


def markdown_table(results: Results | Mapping[str, Any]) -> str:
    """The comparison as a Markdown table, without its caption."""
    grid = comparison(results)
    return markdown(grid.columns, grid.rows, num_text_columns=_NUM_TEXT_COLUMNS)


def markdown(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...], *, num_text_columns: int) -> str:
    """Any Markdown table; the first columns are words and left-aligned, the others numbers."""
    rule = [":---" if index < num_text_columns else "---:" for index in range(len(columns))]
    lines = [columns, rule, *(tuple(_markdown_cell(cell) for cell in cells) for cells in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _markdown_cell(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.splitlines()).strip() or _ABSENT


def html_table(results: Results | Mapping[str, Any]) -> Markup:
    """The comparison as an HTML table; narrow screens stack each row, so every cell carries its column's name."""
    grid = comparison(results)
    # roles are spelt out because browsers drop a table's meaning when its rows are laid out as blocks
    head = Markup("").join(Markup('<th scope="col" role="columnheader">{}</th>').format(name) for name in grid.columns)
    body = Markup("").join(
        Markup('<tr role="row" class="{}">{}</tr>\n').format(role.replace("_", "-"), _html_cells(grid.columns, cells))
        for role, cells in zip(grid.roles, grid.rows, strict=True)
    )
    return Markup(
        '<table class="comparison" role="table"><caption>{}</caption>\n<thead role="rowgroup"><tr role="row">{}</tr>'
        '</thead>\n<tbody role="rowgroup">\n{}</tbody></table>'
    ).format(grid.caption, head, body)


def _html_cells(columns: tuple[str, ...], cells: tuple[str, ...]) -> Markup:
    first = Markup('<th scope="row" role="rowheader">{}</th>').format(cells[0])
    rest = (
        Markup('<td role="cell" data-label="{}">{}</td>').format(column, cell)
        for column, cell in zip(columns[1:], cells[1:], strict=True)
    )
    return first + Markup("").join(rest)
