"""The panels that every report has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from crossdistill.analysis.compare import difference, points, summarise, verdict
from crossdistill.report.figures import NUM_SERIES_COLOURS, Dots, Series, css_colour, dot_plot, is_dashed, line_chart
from crossdistill.report.history import Curve, History
from crossdistill.report.notes import notes
from crossdistill.report.panel import Panel, panel
from crossdistill.report.results import Row
from crossdistill.report.run import Run
from crossdistill.report.table import html_table

_MAX_LOSS_CHARTS = 12
_TEACHER_COLOUR = -1


@panel(position=10)
def headline(run: Run) -> Panel | None:
    """Did distillation help, as measured; for a plain training run, what it reached."""
    results, baseline = run.results, run.results.baseline
    if not results.rows:
        return None
    if not results.distilled:
        row = results.rows[0]
        return Panel("Result", paragraph(results.headline or reached(row), "lead"), "headline")
    if baseline is None:
        text = "The student was not trained alone here, so whether distillation helped is not known."
        return Panel("Did distillation help?", paragraph(results.headline or text, "lead"), "headline")
    cards = Markup("\n").join(_card(baseline, row) for row in results.distilled)
    sentences = " ".join(_verdict(baseline, row) for row in results.distilled)
    extra = paragraph(results.headline, "lead") if results.headline not in (None, sentences) else Markup("")
    note = "Each method is judged by its own 95 % interval; with several methods, one may pass by chance."
    caution = paragraph(note, "note") if len(results.distilled) > 1 else Markup("")
    return Panel(
        "Did distillation help?", extra + Markup('<div class="cards">{}</div>').format(cards) + caution, "headline"
    )


def reached(row: Row) -> str:
    """One sentence on a single model."""
    if row.role == "pretrained":
        return f"Learnt without labels, {row.name} reaches {accuracy_of(row)} by {row.method} ({_seeds(row)})."
    return f"{row.name} reached {accuracy_of(row)} top-1 accuracy ({_seeds(row)})."


def accuracy_of(row: Row) -> str:
    """The mean over seeds."""
    return f"{100 * row.top1_mean:.1f} %"


def _seeds(row: Row) -> str:
    spread = f", standard deviation {100 * row.top1_sd:.1f}" if row.top1_sd is not None else ""
    return f"mean of {len(row.runs)} seeds{spread}" if len(row.runs) > 1 else "one seed: no spread is known"


def _verdict(baseline: Row, row: Row) -> str:
    return verdict(baseline.by_seed, row.by_seed, subject=f"Distillation ({row.method})")


def _card(baseline: Row, row: Row) -> Markup:
    measured = difference(baseline.by_seed, row.by_seed)
    outcome = measured.outcome if measured is not None else "unclear"
    figure = points(measured.mean) if measured is not None else "–"
    return Markup('<div class="card {}"><p class="figure">{}<span> points</span></p><p>{}</p></div>').format(
        outcome, figure, _verdict(baseline, row)
    )


@panel(position=20)
def warnings(run: Run) -> Panel | None:
    """What a reader must know before using the numbers."""
    if not run.results.warnings:
        return None
    items = Markup("").join(Markup("<li>{}</li>").format(text) for text in run.results.warnings)
    return Panel("Read this first", Markup("<ul>{}</ul>").format(items), "warnings")


@panel(position=30)
def comparison(run: Run) -> Panel | None:
    """The table of all networks; of federations, their own room shows one."""
    if not run.results.rows or run.results.kind == "federate":
        return None
    wrapper = Markup('<div class="wide" tabindex="0" role="region" aria-label="Comparison table">{}</div>')
    below = Markup("\n").join(paragraph(text, "note") for text in notes(run.results))
    return Panel("Comparison", wrapper.format(html_table(run.results)) + below)


@panel(position=40)
def accuracy(run: Run) -> Panel | None:
    """Every seed's accuracy as a dot, and the accuracy while training as curves."""
    series = _accuracies(run)
    series += _teacher_line(run, series)
    figures = _dots(run) + (_accuracy_curves(run, series) if series else Markup(""))
    if not figures:
        return None
    return Panel("Accuracy", legend(series) + Markup('<div class="pair">{}</div>').format(figures))


def _dots(run: Run) -> Markup:
    colours = row_colours(run.results.rows)
    dots = [
        Dots(row.label, colour, tuple(one.top1 for one in row.runs), row.top1_mean)
        for row, colour in zip(run.results.rows, colours, strict=True)
        if row.runs
    ]
    if sum(len(row.values) for row in dots) < 2:
        return Markup("")
    label = "Top-1 accuracy of every seed. " + "; ".join(
        f"{row.name}: {', '.join(f'{100 * value:.1f} %' for value in row.values)}" for row in dots
    )
    return shown("At the end, one dot per seed, bar at the mean", dot_plot(dots, identifier="dots", label=label))


def _accuracy_curves(run: Run, series: list[Series]) -> Markup:
    label = describe("Top-1 accuracy", series, percent=True, axis=run.axis)
    svg = line_chart(series, axis=run.axis, percent=True, size=(5.2, 3.1), identifier="accuracy", label=label)
    return shown("While training", svg)


@panel(position=50)
def losses(run: Run) -> Panel | None:
    """Training losses: the total, then each term on its own scale, since their sizes differ."""
    terms = dict.fromkeys(term for one in trainings(run) for history in one.histories for term in history.terms)
    charts = [(name, _losses(run, term)) for name, term in [("total", None), *((term, term) for term in terms)]]
    charts = [(name, series) for name, series in charts if series]
    if not charts:
        return None
    every = Markup("\n").join(_loss_chart(run, index, *chart) for index, chart in enumerate(charts[:_MAX_LOSS_CHARTS]))
    left = len(charts) - _MAX_LOSS_CHARTS
    rest = paragraph(f"{left} more terms are in metrics.jsonl.", "note") if left > 0 else Markup("")
    return Panel(
        "Losses while training", legend(charts[0][1]) + Markup('<div class="charts">{}</div>').format(every) + rest
    )


def _loss_chart(run: Run, index: int, name: str, series: list[Series]) -> Markup:
    label = describe(f"Training loss, {name}", series, percent=False, axis=run.axis)
    svg = line_chart(series, axis=run.axis, percent=False, size=(3.6, 2.3), identifier=f"loss{index}", label=label)
    return shown(name, svg)


@panel(position=60)
def speed(run: Run) -> Panel | None:
    """Training speed and the share of time spent waiting for data."""
    facts = {
        one.name: f"{rate:.0f} images/s, {100 * (waiting or 0):.0f} % waiting for data"
        for one in trainings(run)
        if (rate := _median(history.median("images_per_second") for history in one.histories)) is not None
        for waiting in [_median(history.median("data_wait_share") for history in one.histories)]
    }
    return Panel("Training speed", _definitions(facts)) if facts else None


def _median(values: Iterable[float | None]) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


@panel(position=80)
def settings(run: Run) -> Panel | None:
    """The resolved settings, and the command that gave them."""
    return settings_panel(run.results.command, run.settings)


def settings_panel(given: str, resolved: str) -> Panel | None:
    """A command and a tree of settings."""
    command = Markup("<h3>Command</h3><pre><code>{}</code></pre>").format(given)
    tree = Markup('<h3>Resolved settings</h3><pre class="tall" tabindex="0"><code>{}</code></pre>').format(resolved)
    html = (command if given else Markup("")) + (tree if resolved else Markup(""))
    return Panel("Settings", html) if html else None


@panel(position=90)
def environment(run: Run) -> Panel | None:
    """Versions and hardware."""
    return environment_panel(run.results.environment)


def environment_panel(found: Mapping[str, Any]) -> Panel | None:
    """The facts of an environment."""
    facts = dict(found)
    if facts.get("commit"):
        facts["commit"] = f"{facts['commit'][:12]}{' with uncommitted changes' if facts.pop('dirty', False) else ''}"
    facts.pop("dirty", None)
    shown = {
        key.removeprefix("num_").replace("_", " "): _plain(value)
        for key, value in facts.items()
        if value not in (None, [], "")
    }
    return Panel("Environment", _definitions(shown)) if shown else None


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def row_colours(rows: Iterable[Row]) -> list[int]:
    """Colour of each row: students by position, the teacher apart from them all."""
    colours, taken = [], 0
    for row in rows:
        colours.append(_TEACHER_COLOUR if row.role == "teacher" else taken)
        taken += row.role != "teacher"
    return colours


@dataclass(frozen=True, slots=True)
class Training:
    """What is drawn in one colour of what was logged: the runs of one network, one history a seed."""

    name: str
    colour: int
    histories: tuple[History, ...]


def trainings(run: Run) -> list[Training]:
    """What was trained, whether its accuracy was measured, in several ways, or not at all."""
    if not run.results.rows:
        return [Training("Trained", 0, run.unmeasured)]
    colours = row_colours(run.results.rows)
    every = [Training(row.training, colour, own) for (row, own), colour in zip(run.rows, colours, strict=True)]
    return [one for one in every if any(history.train for history in one.histories)]


def _losses(run: Run, term: str | None) -> list[Series]:
    """The curves of a loss, or of the total, of all that was trained."""
    return [
        series
        for one in trainings(run)
        for series in drawn(one.name, one.colour, [history.loss(run.axis, term) for history in one.histories])
    ]


def _accuracies(run: Run) -> list[Series]:
    """The curves of accuracy, of students and of networks that a method had measured beside them."""
    series = []
    for (row, histories), colour in zip(run.rows, row_colours(run.results.rows), strict=True):
        series += drawn(row.label, colour, [history.accuracy(run.axis) for history in histories])
        for network in dict.fromkeys(name for history in histories for name in history.measured):
            curves = [history.accuracy(run.axis, network) for history in histories]
            ends = summarise([curve[-1][1] for curve in curves if curve]).mean
            name = f"{row.label}: {network.replace('_', ' ')} network, {100 * ends:.1f} % at the end"
            series += drawn(name, colour + NUM_SERIES_COLOURS, curves)
    return series


def _teacher_line(run: Run, series: list[Series]) -> list[Series]:
    """The teacher's accuracy, where a method's own networks are shown: theirs should come to lie below it."""
    teacher = next((row for row in run.results.rows if row.role == "teacher"), None)
    if teacher is None or not any(is_dashed(one.colour) for one in series):
        return []
    places = [x for one in series for curve in one.curves for x, _ in curve]
    line = tuple((x, teacher.top1_mean) for x in (min(places), max(places)))
    return [Series(teacher.label, _TEACHER_COLOUR, (line,))]


def drawn(name: str, colour: int, curves: Iterable[Curve]) -> list[Series]:
    """The series of the curves that have more than a point; none without any."""
    long_enough = tuple(curve for curve in curves if len(curve) > 1)
    return [Series(name, colour, long_enough)] if long_enough else []


def describe(subject: str, series: list[Series], *, percent: bool, axis: str) -> str:
    """A chart in words, for those who do not see it."""
    parts = []
    for one in series:
        first, last = (summarise([curve[end][1] for curve in one.curves]).mean for end in (0, -1))
        ends = f"{100 * first:.1f} % to {100 * last:.1f} %" if percent else f"{first:.3g} to {last:.3g}"
        parts.append(f"{one.name} from {ends}")
    return f"{subject} by {axis}: {'; '.join(parts)}."


def legend(series: list[Series]) -> Markup:
    """What each colour of a chart stands for."""
    items = Markup("").join(
        Markup('<li><span class="swatch{}" style="border-color: {}"></span>{}</li>').format(
            " dashed" if is_dashed(one.colour) else "", css_colour(one.colour), one.name
        )
        for one in series
    )
    several = any(len(one.curves) > 1 for one in series)
    note = Markup('<li class="note">strong: mean over seeds; faint: single seeds</li>') if several else Markup("")
    return Markup('<ul class="legend">{}{}</ul>').format(items, note)


def shown(caption: str, svg: Markup) -> Markup:
    """A figure with its caption."""
    return Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(caption, svg)


def paragraph(text: str, kind: str) -> Markup:
    """A paragraph of this CSS class."""
    return Markup('<p class="{}">{}</p>').format(kind, text)


def _definitions(facts: dict[str, str]) -> Markup:
    items = Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(*fact) for fact in facts.items())
    return Markup('<dl class="facts">{}</dl>').format(items)
