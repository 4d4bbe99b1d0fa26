"""One self-contained HTML page for a run folder: nothing is loaded from anywhere, nothing is executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

import crossdistill.report.panels  # noqa: F401  (registers the panels)
from crossdistill.files import write_text, writing
from crossdistill.report.panel import Panel, panels_of
from crossdistill.report.results import Results
from crossdistill.report.run import Run, read_run
from crossdistill.report.table import grouped

REPORT = "report.html"


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder, from its ``results.json``, ``metrics.jsonl`` and ``config.yaml``.

    The same folder always gives the same bytes.

    Raises:
        InputError: not the folder of a finished run, or not writable.
    """
    page = render(read_run(run))
    with writing(run):
        write_text(run / REPORT, page)
    return run / REPORT


def render(run: Run) -> str:
    """The page as text."""
    results = run.results
    return page_of(title(results), results.kind, facts(results), panels_of(run))


def page_of(title: str, kind: str, facts: Mapping[str, str], panels: Sequence[Panel]) -> str:
    """A page of these panels, below a title and a strip of facts; ``kind`` is what made it."""
    environment = Environment(
        loader=PackageLoader("crossdistill.report", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(title=title, kind=kind, facts=facts, panels=panels)


def title(results: Results) -> str:
    """What was trained, and by whom it was taught."""
    students = dict.fromkeys(row.name for row in results.rows if row.role != "teacher")
    teachers = dict.fromkeys(row.name for row in results.rows if row.role == "teacher")
    names = ", ".join(students or teachers) or results.student or results.kind
    if results.kind == "pretrain":
        return f"{names}, pretrained without labels{results.words_of}"
    if results.kind == "federate":
        methods = ", ".join(dict.fromkeys(row.label for row in results.rows))
        return f"{results.settings.get('clients', 'Several')} clients: {methods}"
    taught = f" taught by {', '.join(teachers)}" if results.distilled and teachers else ""
    return f"{names}{taught}"


def facts(results: Results) -> dict[str, str]:
    """The strip below the title."""
    data = results.data
    seeds = {run.seed for row in results.rows for run in row.runs if row.role != "teacher"}
    classes = f"{grouped(data.num_classes)} classes" if data.num_classes else "no classes"
    evaluated = f"{grouped(data.num_evaluation)} images ({data.evaluation_split})" if data.num_evaluation else "nothing"
    return {
        "data": f"{data.source}, {classes}",
        "training images": f"{grouped(data.num_train)}, {_labelled(results)}",
        "evaluated on": evaluated,
        **({"seeds": ", ".join(map(str, sorted(seeds)))} if seeds else {}),
        **({"time": duration(results.seconds)} if results.seconds else {}),
    }


def _labelled(results: Results) -> str:
    data = results.data
    if results.kind == "pretrain":
        return "no label read"
    return "all labelled" if data.num_labelled == data.num_train else f"{grouped(data.num_labelled)} labelled"


def duration(seconds: float) -> str:
    """Such as ``2 min 05 s``.

    >>> duration(42.3), duration(125), duration(7300)
    ('42 s', '2 min 05 s', '2 h 01 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
